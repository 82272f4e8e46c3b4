import io
import sys

import pytest

from lightgen.core import progress as progress_module
from lightgen.core.progress import Progress, duration, say


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_every_few_seconds_with_speed_and_time_left(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with Progress("encode latents", 200, "images") as progress:
        for _ in range(10):
            clock.now += 2.0
            progress.advance(10, loss=0.31234567)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "encode latents: 0/200 images",
        "encode latents: 30/200 images, 5 images/s, 34s left, loss 0.3123",
        "encode latents: 60/200 images, 5 images/s, 28s left, loss 0.3123",
        "encode latents: 90/200 images, 5 images/s, 22s left, loss 0.3123",
        "encode latents: 100/200 images, 5 images/s, took 20s, loss 0.3123",
    ]


def test_work_of_an_earlier_run_does_not_count_towards_the_speed(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with Progress("train", 1000, "steps", done=900) as progress:
        clock.now += 10.0
        progress.advance(50)
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "train: 900/1,000 steps"
    assert err[1] == "train: 950/1,000 steps, 5 steps/s, 10s left"


def test_an_unknown_total_and_no_progress(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with Progress("scan", None, "records") as progress:
        clock.now += 6.0
        progress.advance(12)
    with Progress("nothing", 0, "records"):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "scan: 0 records",
        "scan: 12 records, 2 records/s",
        "scan: 12 records, 2 records/s, took 6s",
        "nothing: 0/0 records",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    progress_module._console.cache_clear()
    with Progress("train [nano]", 10, "steps") as progress:
        progress.advance(10, loss=0.5)
        say("[a] line")
    progress_module._console.cache_clear()
    text = terminal.getvalue()
    assert "train [nano]" in text
    assert "10/10" in text
    assert "loss 0.5" in text
    assert "[a] line" in text


def test_say_is_plain_and_goes_to_standard_error(capsys):
    say("[bold]as it is[/bold]")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "[bold]as it is[/bold]\n")
    say("left out \x1b[2Ja\u202eb")
    assert capsys.readouterr().err == "left out \ufffd[2Ja\ufffdb\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1:00"), (185, "3:05"), (3723, "1:02:03")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
