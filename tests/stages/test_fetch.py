"""A pinned file is fetched once, and nothing else is ever taken for it."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lightgen.core.errors import UserError
from lightgen.stages.fetch import GENEVAL, Pinned, fetch

DATA = b'{"prompt": "a photo of a bench"}\n'


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Pinned file on a server of this machine, and what was asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path == "/data.jsonl" else 404)
            self.end_headers()
            self.wfile.write(DATA)

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/data.jsonl"
    yield Pinned(url=url, sha256=hashlib.sha256(DATA).hexdigest(), size=len(DATA)), asked
    server.shutdown()
    server.server_close()


def test_it_is_fetched_once(server):
    file, asked = server
    path = fetch(file)
    assert path.read_bytes() == DATA and path.name.endswith("-data.jsonl")
    assert fetch(file) == path and asked == ["/data.jsonl"]
    path.write_bytes(DATA[:-1])
    assert fetch(file).read_bytes() == DATA and len(asked) == 2, "a damaged copy is fetched again"


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": len(DATA) - 1}])
def test_another_file_is_not_kept(server, tmp_path, change):
    file, _ = server
    other = Pinned(**{**vars(file), **change})
    with pytest.raises(UserError, match="not the one that was pinned"):
        fetch(other)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_network(server, monkeypatch):
    file, _ = server
    with pytest.raises(UserError, match=r"not fetched .*404.* --prompts FILE"):
        fetch(Pinned(**{**vars(file), "url": file.url + "x"}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        fetch(file)


def test_what_is_pinned_of_geneval():
    assert GENEVAL.url.startswith("https://") and len(GENEVAL.sha256) == 64
    assert GENEVAL.name == "evaluation_metadata.jsonl"
