"""The command `lightgen serve`: its options, its refusals, and a process that begins and ends in order."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from lightgen.cli import serve
from lightgen.cli.main import main as run

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-tests"
ASKED = {"prompt": "a red apple", "seed": 3}
LONG = {**ASKED, "num_inference_steps": 40, "num_head_steps": 2, "preset": "exact"}


@pytest.fixture
def given(monkeypatch):
    """What the server was started with, in place of a server."""
    from lightgen.serve import run as server

    found = []
    monkeypatch.setattr(server, "serve", lambda *arguments: found.append(arguments))
    return found


def refusal(capsys, *arguments):
    assert run(["serve", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("lightgen: ") and told.err.count("\n") == 1
    return told.err


def test_what_is_not_said_is_the_default(given):
    assert run(["serve"]) == 0
    ((config, models, safety),) = given
    assert models == {"nano": "nano"} and safety is None
    assert (config.host, config.port, config.preset) == ("127.0.0.1", 8000, "fast")


def test_every_option_reaches_the_config(given, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda count: given.append(count))
    arguments = {
        "--host": "::1",
        "--port": "0",
        "--api-key-file": str(tmp_path / "keys"),
        "--allowed-host": "mine.example",
        "--cors-origin": "https://friend.example",
        "--preset": "exact",
        "--max-running": "3",
        "--max-waiting": "9",
        "--max-per-key": "8",
        "--deadline": "7.5",
        "--drain": "2",
        "--max-side": "512",
        "--max-pictures": "4",
        "--max-connections": "11",
        "--threads": "1",
        "--safety": "checker",
        "--c2pa-certificate": "chain.pem",
        "--c2pa-key": "key.pem",
    }
    listed = [text for pair in arguments.items() for text in pair]
    more = ["--model", "nano", "--model", "b=runs/b", "--allowed-host", "more.example", "--insecure-no-keys"]
    assert run(["serve", *listed, *more]) == 0
    threads, (config, models, safety) = given
    assert threads == 1 and models == {"nano": "nano", "b": "runs/b"} and safety == "checker"
    assert (config.host, config.port, config.preset, config.drain_s) == ("::1", 0, "exact", 2)
    assert config.allowed_hosts == ("mine.example", "more.example") and config.insecure_no_keys
    assert config.cors_origins == ("https://friend.example",)
    queue = config.queue
    assert (queue.max_running, queue.max_waiting, queue.max_per_key, queue.deadline_s) == (3, 9, 8, 7.5)
    assert (config.limits.max_side_px, config.limits.max_pictures) == (512, 4)
    assert config.connections.max_connections == 11
    assert config.api_key_file == tmp_path / "keys"
    assert (config.c2pa_certificate, config.c2pa_key) == (Path("chain.pem"), Path("key.pem"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prot", "1"], "did you mean '--port'?"),
        (["--port", "x"], "--port"),
        (["--port", "70000"], "port: got 70000"),
        (["--preset", "fats"], "did you mean 'fast'?"),
        (["--threads", "0"], "--threads 0"),
        (["--max-running", "0"], "max_running: got 0"),
        (["--model", "a=x", "--model", "a=y"], "each name once"),
        (["--model", ""], "each name once"),
        (["--host", "0.0.0.0"], "without keys"),
        (["--allowed-host", "pictures.example"], "--allowed-host: got 'pictures.example' without keys"),
        (["--cors-origin", "their.example"], "--cors-origin: got 'their.example'"),
        (["--host", "192.0.2.77", "--insecure-no-keys"], "192.0.2.77"),
        (["--host", "no such host"], "no such host"),
        (["--api-key-file", "nowhere"], "nowhere"),
        (["--c2pa-key", "key.pem"], "both or none"),
        (["--model", "no-such-folder", "--port", "0"], "no-such-folder"),
        (["--safety", "no-such-folder", "--port", "0"], "no-such-folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, arguments, told):
    assert told in refusal(capsys, *arguments)


def test_a_port_that_is_taken_is_refused(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port: got {port}" in refusal(capsys, "--port", port)


def test_other_machines_may_ask_with_keys(given, tmp_path):
    file = tmp_path / "keys"
    file.write_text(KEY)
    assert run(["serve", "--host", "0.0.0.0", "--api-key-file", str(file)]) == 0
    assert run(["serve", "--host", "0.0.0.0", "--insecure-no-keys"]) == 0


def test_keys_are_read_once(monkeypatch, tmp_path):
    from lightgen.serve import run as server

    file, given = tmp_path / "keys", []
    file.write_text(KEY)
    monkeypatch.setattr(server, "open_live", lambda place: file.unlink())
    monkeypatch.setattr(server, "PictureServer", lambda *arguments: given.append(arguments[-1]) or _Ended())
    assert run(["serve", "--port", "0", "--api-key-file", str(file)]) == 0
    assert given[0].owner(KEY)


class _Ended:
    """A server that has nothing to do."""

    second_signal = None

    async def serve(self, sockets):
        assert sockets


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_while_the_models_are_read_ends_quietly(capsys, monkeypatch, number, code, word):
    from lightgen.serve import run as server

    monkeypatch.setattr(server, "open_live", lambda place: signal.raise_signal(number))
    assert run(["serve", "--port", "0"]) == code
    told = capsys.readouterr()
    assert told.out == "" and told.err == f"lightgen serve: {word}\n"


@pytest.mark.parametrize("name", serve._NEEDS)
def test_a_library_that_is_missing_is_named(capsys, monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each: None if each == name else find(each))
    told = refusal(capsys)
    assert name in told and "pip install lightgen[serve]" in told


def test_help_says_how_it_ends(capsys):
    with pytest.raises(SystemExit) as caught:
        run(["serve", "--help"])
    told = capsys.readouterr().out
    assert caught.value.code == 0 and "SIGTERM" in told and "--api-key-file" in told
    assert re.search(r"^  serve  ", _overview(capsys), re.MULTILINE)


def _overview(capsys):
    run(["--help"])
    return re.sub(r" {3,}", "  ", capsys.readouterr().out)


class Process:
    """`lightgen serve` with the shipped model, in a process of its own."""

    def __init__(self, *arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lightgen.cli.main", "serve", "--port", "0", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.line = self.process.stdout.readline()
        match = re.fullmatch(r"lightgen serve: (http://127\.0\.0\.1:\d+) \(nano\)\n", self.line)
        assert match, (self.line, self.process.stderr.read())
        self.url = match[1]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def end(self, number):
        """Start the end, and know that it began."""
        self.process.send_signal(number)
        assert "ending" in self.process.stderr.readline()


def test_the_end_waits_for_what_was_accepted_and_refuses_the_rest():
    slow = {**LONG, "n": 2}
    with Process() as server:
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{server.url}/v1/images/generations", json=slow, timeout=60)
            )
        )
        asking.start()
        metrics = ""
        while "lightgen_running 2.0" not in metrics:
            metrics = httpx.get(f"{server.url}/metrics").text
            time.sleep(0.02)
        server.end(signal.SIGTERM)
        late = httpx.post(f"{server.url}/v1/images/generations", json=ASKED)
        assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1
        assert httpx.get(f"{server.url}/ready").status_code == 503
        asking.join()
        assert answers[0].status_code == 200 and len(answers[0].json()["data"]) == 2
        assert server.process.wait(20) == 0
        assert server.process.stderr.read() == ""


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_second_signal_ends_at_once(number, code, word):
    slow = {**LONG, "n": 8, "stream": True, "progress": True}
    with (
        Process("--drain", "600") as server,
        httpx.stream("POST", f"{server.url}/v1/images/generations", json=slow, timeout=60) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        server.end(signal.SIGTERM)
        server.process.send_signal(number)
        assert server.process.wait(20) == code
        assert server.process.stderr.read() == f"lightgen serve: {word}\n"
        with pytest.raises(httpx.HTTPError):
            assert "image_generation.completed" not in "".join(lines)
