import errno
import io
import json

import pytest

from lightgen.core.errors import UserError
from lightgen.core.metrics import MetricsLog, read_metrics


def test_what_is_written_is_read(tmp_path):
    log = MetricsLog(tmp_path / "deep" / "metrics.jsonl")
    assert read_metrics(log.path) == []
    log.write(1, loss=0.5, lr=1e-3)
    log.write(2, loss=float("nan"), note="skipped", done=False)
    assert read_metrics(log.path) == [
        {"step": 1, "loss": 0.5, "lr": 1e-3},
        {"step": 2, "loss": None, "note": "skipped", "done": False},
    ]
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]


def test_a_missing_log_is_empty(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("before", [0, 1, 70_000])
def test_a_line_torn_at_any_byte_is_dropped_and_the_next_is_whole(tmp_path, before):
    path = tmp_path / "metrics.jsonl"
    for cut in range(1, 12):
        path.unlink(missing_ok=True)
        log = MetricsLog(path)
        for step in range(min(before, 2)):
            log.write(step, note="x" * (before // 2))
        kept = read_metrics(path)
        log.write(2, loss=0.25)
        path.write_bytes(path.read_bytes()[:-cut])
        assert read_metrics(path) == kept
        again = MetricsLog(path)
        again.write(2, loss=0.5)
        assert read_metrics(path) == [*kept, {"step": 2, "loss": 0.5}]


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe", b"[1]", b'{"loss": 1}', b'{"step": "1"}', b'{"step": true}', b""]
)
def test_damage_before_the_last_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is "):
        read_metrics(path)


def test_a_resumed_run_does_not_record_a_step_twice(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 8):
        log.write(step, loss=1 / step)
    whole = read_metrics(log.path)
    MetricsLog(log.path).truncate_after(4)
    assert read_metrics(log.path) == whole[:4]
    for step in range(5, 8):
        log.write(step, loss=1 / step)
    assert read_metrics(log.path) == whole
    log.truncate_after(100)
    assert read_metrics(log.path) == whole
    log.truncate_after(-1)
    assert read_metrics(log.path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, loss=1.0)

    class FullDisk(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", lambda self, mode, buffering: FullDisk(self, mode))
    with pytest.raises(OSError, match="No space left"):
        log.write(2, loss=1.0)
    monkeypatch.undo()
    log.write(3, loss=1.0)
    assert [record["step"] for record in read_metrics(log.path)] == [1, 3]
