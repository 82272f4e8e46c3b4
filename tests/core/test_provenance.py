import subprocess
from pathlib import Path

from lightgen.core import provenance


def git(where: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    subprocess.run(["git", *who, *arguments], cwd=where, check=True, capture_output=True)


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path, monkeypatch):
    source = tmp_path / "lightgen" / "core" / "provenance.py"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    monkeypatch.setattr(provenance, "__file__", str(source))
    assert provenance.code_commit() is None
    git(tmp_path, "init")
    assert provenance.code_commit() is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    clean = provenance.code_commit()
    assert clean is not None
    assert len(clean) == 40
    source.write_text("two")
    assert provenance.code_commit() == clean + "-dirty"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lightgen" / "core" / "provenance.py"))
    monkeypatch.setenv("PATH", "")
    assert provenance.code_commit() is None


def test_versions_name_what_results_depend_on():
    versions = provenance.library_versions()
    assert {"python", "torch", "numpy"} <= set(versions)
