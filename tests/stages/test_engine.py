import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightgen.core.artifact import begin_artifact
from lightgen.core.directory import whole_file
from lightgen.core.draws import draw_key
from lightgen.core.errors import UserError
from lightgen.stages import engine as stage
from lightgen.stages.engine import EngineConfig, Writer, cut, write_shards

RAY = EngineConfig(name="ray", workers=2)


@pytest.fixture(scope="module")
def cluster():
    """A local Ray, started once: that takes longer than any of these tests."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Numbers:
    """Shards of text that note each beginning; `dies` kills once in those shards, `doomed` at each try."""

    notes: str
    dies: tuple[int, ...] = ()
    refuses: int | None = None
    doomed: int | None = None

    def open(self) -> Writer:
        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            with (Path(self.notes) / f"{number}-{os.getpid()}-{time.monotonic_ns()}").open("w"):
                pass
            if number == self.doomed:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == self.refuses:
                raise UserError(f"shard {number}: got nothing, allowed: something")
            with whole_file(path) as temporary:
                temporary.write_text(content(number))
                again = len(list(Path(self.notes).glob(f"{number}-*"))) > 1
                if number in self.dies and not again:
                    os.kill(os.getpid(), signal.SIGKILL)
            advance(3)

        return write


def content(number):
    return hashlib.sha256(str(draw_key(0, "shard", number)).encode()).hexdigest()


def make(tmp_path, engine, num=6, name="out", **faults):
    notes = tmp_path / f"notes-{name}"
    notes.mkdir(exist_ok=True)
    with begin_artifact(tmp_path / name, "images", {}, []) as workspace:
        names = [f"s-{number}.txt" for number in range(num)]
        write_shards(engine, workspace, "count", names, [3] * num, Numbers(str(notes), **faults))
        return workspace.commit({}), sorted(int(each.name.partition("-")[0]) for each in notes.iterdir())


def test_shards_cover_all_numbers_once():
    assert cut(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert cut(6, 3) == [range(0, 3), range(3, 6)]
    assert cut(0, 3) == []


def test_both_engines_write_the_same(tmp_path, cluster):
    local, begun = make(tmp_path, EngineConfig(), name="local")
    assert begun == list(range(6))
    ray, begun = make(tmp_path, RAY, name="ray")
    assert begun == list(range(6))
    assert ray.manifest["files"] == local.manifest["files"]


@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_worker_is_replaced_and_what_it_left_is_removed(tmp_path, cluster):
    clean, _ = make(tmp_path, EngineConfig(), name="clean", num=8)
    found, begun = make(tmp_path, RAY, name="killed", num=8, dies=(3, 5))
    assert found.manifest["files"] == clean.manifest["files"]
    assert begun == [0, 1, 2, 3, 3, 4, 5, 5, 6, 7], "those of the killed workers twice, all others once"


@pytest.mark.slow
@pytest.mark.faults
def test_a_shard_that_kills_every_worker_ends_the_run(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(stage, "_MOST_TRIES", 2)
    with pytest.raises(UserError, match=r"^engine ray: got 2 workers that died at s-1.txt, allowed: "):
        make(tmp_path, EngineConfig(name="ray"), num=3, doomed=1)
    _, begun = make(tmp_path, EngineConfig(), num=3)
    assert begun.count(1) == 3


def test_what_a_worker_refuses_is_told_in_one_line(tmp_path, cluster):
    with pytest.raises(UserError, match=r"^shard 2: got nothing, allowed: something$"):
        make(tmp_path, RAY, refuses=2)
    assert not (tmp_path / "out").exists()


def test_only_missing_shards_are_written(tmp_path):
    with pytest.raises(UserError):
        make(tmp_path, EngineConfig(), refuses=4)
    _, begun = make(tmp_path, EngineConfig())
    assert begun == [0, 1, 2, 3, 4, 4, 5]


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (EngineConfig(workers=2), "allowed: --engine ray"),
        (EngineConfig(name="ray", workers=0), "got 0 workers"),
        (EngineConfig(name="ray", gpus=-1), "-1 GPUs"),
    ],
)
def test_what_an_engine_cannot_have(engine, told):
    with pytest.raises(UserError, match=told):
        engine.check()


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'lightgen\[ray\]'"):
        make(tmp_path, RAY)


_LOCAL_RUN = """
import sys
from pathlib import Path
from tests.stages.test_engine import EngineConfig, make
make(Path(sys.argv[1]), EngineConfig(), num=int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.faults
def test_500_shards_after_100_kills_are_those_of_a_clean_run(tmp_path):
    clean, _ = make(tmp_path, EngineConfig(), name="clean", num=500)
    kills = 0
    command = [sys.executable, "-c", _LOCAL_RUN, str(tmp_path), "500"]
    partial = tmp_path / ".out.partial"
    while kills < 100:
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        wanted = len(list(partial.glob("s-*.txt"))) + 1 + draw_key(0, "kill", kills) % 6
        while process.poll() is None and len(list(partial.glob("s-*.txt"))) < min(wanted, 499):
            pass
        assert process.poll() is None, "ended before it was killed"
        process.kill()
        process.wait()
        kills += 1
    found, begun = make(tmp_path, EngineConfig(), num=500)
    assert found.manifest["files"] == clean.manifest["files"]
    assert set(begun) == set(range(500)) and len(begun) <= 500 + kills


@pytest.mark.slow
@pytest.mark.faults
def test_500_shards_by_ray_with_100_killed_workers_are_those_of_a_clean_run(tmp_path, cluster):
    clean, _ = make(tmp_path, EngineConfig(), name="clean", num=500)
    found, begun = make(tmp_path, RAY, num=500, dies=tuple(range(2, 500, 5))[:100])
    assert found.manifest["files"] == clean.manifest["files"]
    assert len(begun) == 600
