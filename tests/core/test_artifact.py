import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightgen.core import artifact as artifact_module
from lightgen.core.artifact import Artifact, ArtifactError, Workspace, begin_artifact, open_artifact

CONFIG = {"seed": 1, "images": {"height": 64, "styles": ["flat", "sketch"]}}


def begin(
    out: Path, config: dict = CONFIG, kind: str = "images", parents: tuple[Artifact, ...] = ()
) -> Workspace:
    work = begin_artifact(out, kind, config, parents)
    assert isinstance(work, Workspace)
    return work


def make(out: Path, **arguments) -> Artifact:
    with begin(out, **arguments) as work:
        work.write_bytes("shards/part-0000.tar", b"0123456789" * 100)
        work.write_json("note.json", {"a": 1})
        return work.commit({"images": 2}, pairs=7)


def refused(path: Path, *kinds: str) -> str:
    with pytest.raises(ArtifactError) as caught:
        open_artifact(path, *kinds)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def rewrite_manifest(path: Path, **changes) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_an_artifact_names_its_making(tmp_path):
    parent = make(tmp_path / "captions", kind="prompts")
    made = make(tmp_path / "pictures", parents=(parent,))
    assert sorted(p.name for p in made.path.iterdir()) == ["manifest.json", "note.json", "shards"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["captions", "pictures"]
    opened = open_artifact(tmp_path / "pictures", "images")
    assert opened == made
    assert (opened.kind, opened.counts, opened.config) == ("images", {"images": 2}, CONFIG)
    assert opened.parents == [{"name": "captions", "kind": "prompts", "digest": parent.digest}]
    assert opened.manifest["pairs"] == 7
    assert opened.manifest["versions"]["python"].startswith("3.")
    assert set(opened.manifest["files"]) == {"note.json", "shards/part-0000.tar"}
    assert opened.manifest["files"]["shards/part-0000.tar"]["bytes"] == 1000


def test_making_it_twice_gives_the_same_bytes(tmp_path):
    assert make(tmp_path / "a" / "x").digest == make(tmp_path / "b" / "x").digest


def test_what_is_whole_is_returned_and_nothing_is_done(tmp_path):
    made = make(tmp_path / "x")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = begin_artifact(tmp_path / "x", "images", {**CONFIG, "seed": 1.0}, [])
    assert again == made
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_config_kind_or_parent_is_refused(tmp_path, finished):
    one, two = make(tmp_path / "one", kind="prompts"), make(tmp_path / "two", config={"n": 2}, kind="prompts")
    if finished:
        make(tmp_path / "x", parents=(one,))
    else:
        begin(tmp_path / "x", parents=(one,)).release()
    with pytest.raises(ArtifactError, match=r"config\.images\.height 64, now 128; .*delete"):
        begin_artifact(
            tmp_path / "x", "images", {**CONFIG, "images": {**CONFIG["images"], "height": 128}}, [one]
        )
    with pytest.raises(ArtifactError, match="kind 'images', now 'latents'"):
        begin_artifact(tmp_path / "x", "latents", CONFIG, [one])
    with pytest.raises(ArtifactError, match=f"parents .{one.digest[:8]}., now .{two.digest[:8]}."):
        begin_artifact(tmp_path / "x", "images", CONFIG, [two])
    same = begin_artifact(tmp_path / "x", "images", CONFIG, [one])
    assert isinstance(same, Artifact) == finished


def test_something_else_in_the_way_is_refused_but_an_empty_directory_is_not(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "full", "link"):
        with pytest.raises(ArtifactError, match="exists already"):
            begin_artifact(tmp_path / name, "images", CONFIG, [])
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    (tmp_path / ".strange.partial").mkdir()
    (tmp_path / ".strange.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="no known run"):
        begin_artifact(tmp_path / "strange", "images", CONFIG, [])


def test_wrong_kind_is_refused_with_both_names(tmp_path):
    make(tmp_path / "x")
    assert "got kind 'images', allowed: latents or checkpoint" in refused(
        tmp_path / "x", "latents", "checkpoint"
    )
    assert open_artifact(tmp_path / "x").kind == "images"


def test_missing_and_unfinished_are_told_apart(tmp_path):
    assert "no such directory" in refused(tmp_path / "x")
    (tmp_path / "tars").mkdir()
    assert "no manifest.json" in refused(tmp_path / "tars")
    begin(tmp_path / "x").release()
    assert "unfinished, run its stage again" in refused(tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"kind": "images"', "damaged"),
        ('{"kind": "images"}', "schema None"),
        ('{"kind": "images", "schema": 1}', "no valid 'config'"),
    ],
)
def test_damaged_manifest(tmp_path, text, said):
    make(tmp_path / "x")
    (tmp_path / "x" / "manifest.json").write_text(text)
    assert said in refused(tmp_path / "x")


def test_wrong_schema_and_unknown_kind(tmp_path):
    make(tmp_path / "x")
    rewrite_manifest(tmp_path / "x", schema=2)
    assert "schema 2, allowed: 1" in refused(tmp_path / "x")
    rewrite_manifest(tmp_path / "x", schema=1, kind="videos")
    assert "'videos'" in refused(tmp_path / "x")


def test_every_flipped_bit_of_a_file_is_found(tmp_path):
    make(tmp_path / "x")
    shard = tmp_path / "x" / "shards" / "part-0000.tar"
    whole = shard.read_bytes()
    for position in (0, 1, 500, 998, 999):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            shard.write_bytes(flipped)
            assert "'shards/part-0000.tar' is damaged" in refused(tmp_path / "x", "images")
    assert open_artifact(tmp_path / "x", verify=False).kind == "images"
    shard.write_bytes(whole)
    open_artifact(tmp_path / "x")


def test_damage_is_found_before_a_stage_is_skipped(tmp_path):
    make(tmp_path / "x")
    (tmp_path / "x" / "shards" / "part-0000.tar").write_bytes(b"0123456780" * 100)
    with pytest.raises(ArtifactError, match="damaged"):
        begin_artifact(tmp_path / "x", "images", CONFIG, [])


def test_truncated_missing_and_extra_files(tmp_path):
    make(tmp_path / "x")
    shard = tmp_path / "x" / "shards" / "part-0000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert "has 999 bytes" in refused(tmp_path / "x")
    shard.unlink()
    assert "'shards/part-0000.tar' is missing" in refused(tmp_path / "x")
    shard.write_bytes(whole)
    extra = shard.with_name("part-0001.tar")
    extra.write_bytes(b"")
    assert "holds 'shards/part-0001.tar'" in refused(tmp_path / "x")
    extra.unlink()
    (tmp_path / "x" / ".DS_Store").write_bytes(b"left by a file browser")
    open_artifact(tmp_path / "x")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../b", "", ".", "a//b", "C:x", "a\\b", "a\0b"]
)
def test_unsafe_names_are_refused_in_a_manifest_and_in_a_workspace(tmp_path, name):
    made = make(tmp_path / "x")
    entry = made.manifest["files"]["note.json"]
    rewrite_manifest(tmp_path / "x", files={**made.manifest["files"], name: entry})
    assert "plain relative paths" in refused(tmp_path / "x")
    with begin(tmp_path / "y") as work, pytest.raises(ArtifactError, match="plain relative path"):
        work.write_bytes(name, b"")


@pytest.mark.parametrize(
    "entry", [None, [], {"bytes": 1}, {"sha256": "0" * 64}, {"sha256": "0" * 63, "bytes": 1}]
)
def test_a_damaged_entry_is_refused(tmp_path, entry):
    make(tmp_path / "x")
    rewrite_manifest(tmp_path / "x", files={"note.json": entry})
    assert "entry of 'note.json' is damaged" in refused(tmp_path / "x")


def test_links_are_not_followed(tmp_path):
    make(tmp_path / "x")
    secret = tmp_path / "secret"
    secret.write_bytes((tmp_path / "x" / "note.json").read_bytes())
    (tmp_path / "x" / "note.json").unlink()
    (tmp_path / "x" / "note.json").symlink_to(secret)
    assert "'note.json' is a link" in refused(tmp_path / "x")
    work = begin(tmp_path / "y")
    (work.path / "loop").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="'loop' is a link"):
        work.commit({})


def test_reserved_names_are_refused(tmp_path):
    with begin(tmp_path / "x") as work:
        for name in ("manifest.json", "partial.json", "partial.lock", "a.tmp"):
            with pytest.raises(ArtifactError):
                work.write_bytes(name, b"")


def test_a_failed_block_leaves_nothing(tmp_path):
    with begin(tmp_path / "x") as work:
        with pytest.raises(KeyboardInterrupt), work.file("a.tar") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt
        assert not work.has("a.tar")
        assert sorted(p.name for p in work.path.iterdir()) == ["partial.json", "partial.lock"]
        work.write_bytes("state/step.json", b"{}")
        assert work.has("state/step.json")
        work.remove("state")
        work.remove("never-there")
        assert not work.has("state/step.json")


def test_full_disk_at_any_sync_costs_nothing_that_was_done(tmp_path, monkeypatch):
    real, full_from, calls = os.fsync, 0, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > full_from:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    failures = 0
    while not (tmp_path / "x").exists():
        calls = 0
        try:
            make(tmp_path / "x")
        except OSError as error:
            failures += 1
            assert error.errno == errno.ENOSPC
            assert not list(tmp_path.rglob("*.tmp"))
            full_from += 1
        if (tmp_path / "x").exists() and failures:
            open_artifact(tmp_path / "x", "images")
    assert failures >= 5  # the note, two files, the manifest, the directories
    monkeypatch.undo()
    assert isinstance(begin_artifact(tmp_path / "x", "images", CONFIG, []), Artifact)


def test_a_file_cut_short_by_the_system_never_gets_its_name(tmp_path):
    code = f"""
import resource
from lightgen.core.artifact import begin_artifact
work = begin_artifact({str(tmp_path / "x")!r}, "images", {CONFIG!r}, [])
work.write_bytes("small.tar", b"ok")
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    work.write_bytes("big.tar", bytes(100_000))
except OSError as error:
    raise SystemExit(42)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 42
    partial = tmp_path / ".x.partial"
    assert sorted(p.name for p in partial.iterdir()) == ["partial.json", "partial.lock", "small.tar"]


def run_and_die(out: Path, die_at: int) -> int:
    """Exit status of a stage in a forked process that dies before its die_at-th effect on the disk."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = 0

    def counted(call):
        def wrapped(*arguments, **named):
            nonlocal seen
            seen += 1
            if seen == die_at:
                os._exit(9)
            return call(*arguments, **named)

        return wrapped

    try:
        for name in ("replace", "unlink", "mkdir", "write_bytes"):
            setattr(Path, name, counted(getattr(Path, name)))
        os.fsync = counted(os.fsync)
        work = begin_artifact(out, "images", CONFIG, [])
        if isinstance(work, Workspace):
            for index in range(3):
                if not work.has(f"part-{index}.tar"):
                    work.write_bytes(f"part-{index}.tar", bytes([index]) * 1000)
            work.commit({"images": 3})
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_before_every_effect_and_run_again_gives_the_same_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact_module, "code_commit", lambda: None)
    assert run_and_die(tmp_path / "clean" / "x", 0) == 0
    clean = open_artifact(tmp_path / "clean" / "x")
    for die_at in range(1, 100):
        out = tmp_path / str(die_at) / "x"
        code = run_and_die(out, die_at)
        if code == 0:
            break
        assert code == 9
        if out.exists():
            open_artifact(out, "images")
        assert run_and_die(out, 0) == 0
        assert open_artifact(out, "images").digest == clean.digest
        assert [p.name for p in out.parent.iterdir()] == ["x"]
    assert die_at > 20


def test_a_second_writer_is_refused_until_the_first_lets_go(tmp_path):
    code = f"""
import sys
from lightgen.core.artifact import begin_artifact, ArtifactError
try:
    begin_artifact({str(tmp_path / "x")!r}, "images", {CONFIG!r}, [])
except ArtifactError as error:
    sys.stdout.write(str(error))
    raise SystemExit(7)
"""
    command = [sys.executable, "-c", code]
    with begin(tmp_path / "x"):
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert other.returncode == 7
        assert "another process is writing it" in other.stdout
    assert subprocess.run(command, check=False).returncode == 0
    begin(tmp_path / "x").release()  # the dead process holds nothing


def test_a_writer_that_lost_the_race_does_not_begin_anew(tmp_path, monkeypatch):
    first = begin(tmp_path / "x")
    first.write_bytes("a.tar", b"a")
    real = artifact_module.lock_file

    def lock_after_the_other_finished(path: Path):
        first.commit({"images": 1})
        path.parent.mkdir(exist_ok=True)
        return real(path)

    monkeypatch.setattr(artifact_module, "lock_file", lock_after_the_other_finished)
    with pytest.raises(ArtifactError, match="exists already"):
        begin_artifact(tmp_path / "x", "images", CONFIG, [])
    monkeypatch.undo()
    assert isinstance(begin_artifact(tmp_path / "x", "images", CONFIG, []), Artifact)


def test_a_run_that_made_nothing_leaves_nothing_in_the_way(tmp_path):
    with begin_artifact(tmp_path / "a", "images", {"size": 1}, []), contextlib.suppress(KeyError):
        raise KeyError
    with begin_artifact(tmp_path / "a", "images", {"size": 2}, []) as work:
        work.write_bytes("one", b"1")
    with pytest.raises(ArtifactError):
        begin_artifact(tmp_path / "a", "images", {"size": 3}, [])
