import email.utils
import pickle
import threading
import time

import pytest

from lightgen.core.errors import UserError
from lightgen.ports import requests
from lightgen.ports.requests import RequestError, check_url, is_loopback, post_json, read_key
from tests.ports.fake_server import Reply, serving

KEY = "sk-very-secret-0123456789"
DONE = Reply.of({"done": True})


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Waits that were asked for, none of which is waited."""
    found: list[float] = []
    monkeypatch.setattr(requests.time, "sleep", found.append)
    monkeypatch.setattr(requests, "MAX_WAIT_S", 30.0)
    return found


def sequence(*replies):
    return serving(lambda asked, number: replies[min(number, len(replies) - 1)])


def test_an_answer_comes_back_and_the_key_goes_in_the_header():
    with sequence(DONE) as server:
        assert post_json(f"{server.url}/v1/x", {"a": ["ü", 1.5]}, KEY) == {"done": True}
    (asked,) = server.asked
    assert asked.path == "/v1/x"
    assert asked.payload == {"a": ["ü", 1.5]}
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.headers["Content-Type"] == "application/json"


def test_without_a_key_none_is_sent():
    with sequence(DONE) as server:
        post_json(server.url, {})
    assert "Authorization" not in server.asked[0].headers


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_what_may_pass_is_asked_again(status, waits):
    with sequence(Reply.of({}, status), Reply.of({}, status), DONE) as server:
        assert post_json(server.url, {}) == {"done": True}
    assert len(server.asked) == 3
    assert len(waits) == 2


def test_waits_double_with_jitter_that_differs_between_questions(waits):
    with sequence(Reply.of({}, 500)) as server:
        for number in range(2):
            with pytest.raises(RequestError, match="got 500") as told:
                post_json(server.url, {"number": number}, retries=6)
            assert told.value.passing
    assert len(server.asked) == 14
    for attempt, pair in enumerate(zip(waits[:6], waits[6:], strict=True)):
        full = min(30.0, 2.0**attempt)
        assert all(full / 2 <= wait <= full for wait in pair)
        assert pair[0] != pair[1]


def test_retry_after_is_kept_to_and_capped(waits):
    in_20 = email.utils.formatdate(time.time() + 20, usegmt=True)
    replies = [Reply.of({}, 429, Retry_After=text) for text in ("7", in_20, "86400", "soon", "-3")]
    with sequence(*replies, DONE) as server:
        post_json(server.url, {})
    assert waits[0] == 7
    assert 18 < waits[1] <= 20
    assert waits[2] == 30
    assert waits[3] <= 8
    assert waits[4] <= 16


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_mistakes_are_not_repeated(status, waits):
    error = {"error": {"message": "no\nsuch   \x1b[31mthing", "code": "bad_thing", "type": "t"}}
    with sequence(Reply.of(error, status)) as server, pytest.raises(RequestError) as told:
        post_json(server.url, {}, KEY)
    assert len(server.asked) == 1
    assert (told.value.status, told.value.code, told.value.told) == (status, "bad_thing", "no such [31mthing")
    assert str(told.value).count("\n") == 0
    assert not told.value.passing


def test_an_empty_purse_is_not_waited_for(waits):
    with (
        sequence(Reply.of({"error": {"code": "insufficient_quota"}}, 429)) as server,
        pytest.raises(RequestError),
    ):
        post_json(server.url, {})
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"error": "plain"}', "plain"),
        (b'{"detail": [{"loc": "prompt"}]}', '[{"loc": "prompt"}]'),
        (b'{"message": "m", "type": 3}', "m"),
        (b"<html>Bad gateway</html>", ""),
        (b"[1]", ""),
        (b"", ""),
        (b"\xff\xfe", ""),
        (b'{"error": {"message": null}}', ""),
        (b"[" * 60_000, ""),
        (b'{"error": "' + b"x" * 100_000 + b'"}', ""),
    ],
)
def test_errors_of_any_kind_become_one_line(body, told):
    with sequence(Reply(body, 400)) as server, pytest.raises(RequestError) as found:
        post_json(server.url, {})
    assert found.value.told == told
    assert len(str(found.value).splitlines()) == 1
    assert len(str(found.value)) < 400


def test_the_key_is_in_no_message(waits):
    echo = Reply.of({"error": {"message": f"wrong key {KEY}!", "code": KEY}}, 401)
    with sequence(echo) as server, pytest.raises(RequestError) as told:
        post_json(server.url, {}, KEY)
    assert KEY not in str(told.value) + told.value.told + told.value.code + repr(told.value.__dict__)
    assert "wrong key ***!" in str(told.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status):
    with (
        sequence(DONE) as other,
        serving(lambda asked, n: Reply.of({}, status, Location=other.url)) as server,
    ):
        with pytest.raises(RequestError, match="redirect"):
            post_json(server.url, {}, KEY)
        assert len(server.asked) == 1
    assert other.asked == []


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[1, 2]", b"null", b"", b'{"a": ', b"[" * 100_000])
def test_an_answer_that_is_no_object_is_refused(body, waits):
    with sequence(Reply(body)) as server, pytest.raises(RequestError, match="allowed: a JSON object"):
        post_json(server.url, {})
    assert len(server.asked) == 1


def test_a_huge_answer_is_cut_short():
    with sequence(Reply(b'"' + b"x" * 3_000_000 + b'"')) as server:
        with pytest.raises(RequestError, match="more than 1000 bytes"):
            post_json(server.url, {}, max_bytes=1000)
        assert len(server.asked) == 1


def test_an_answer_that_breaks_off_is_asked_for_again():
    with sequence(Reply(b'{"done": 1}', cut=50), DONE) as server:
        assert post_json(server.url, {}) == {"done": True}
    assert len(server.asked) == 2


@pytest.mark.parametrize("slow", [{"delay": 0.6}, {"drip": 0.05}])
def test_a_slow_answer_is_given_up(slow):
    began = time.monotonic()
    with sequence(Reply(b'{"done": "' + b"x" * 50 + b'"}', **slow)) as server:
        with pytest.raises(RequestError, match="no answer in time") as told:
            post_json(server.url, {}, timeout_s=0.3, retries=1)
        assert len(server.asked) == 2
    assert told.value.passing
    assert time.monotonic() - began < 2


def test_nobody_there():
    with sequence(DONE) as server:
        pass
    with pytest.raises(RequestError, match="refused") as told:
        post_json(server.url, {}, retries=2)
    assert told.value.passing
    assert told.value.status is None


def test_waiting_ends_when_told():
    stop = threading.Event()
    stop.set()
    with sequence(Reply.of({}, 503)) as server, pytest.raises(RequestError):
        post_json(server.url, {}, stop=stop)
    assert len(server.asked) == 1


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with sequence(DONE) as server:
        assert post_json(server.url, {}, retries=0) == {"done": True}


def test_an_error_travels_to_other_processes():
    error = pickle.loads(pickle.dumps(RequestError("text", 400, "code", "told")))
    assert (str(error), error.status, error.code, error.told) == ("text", 400, "code", "told")
    assert isinstance(error, UserError)


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.org/v1", "ftp://example.org", "file:///etc/passwd", "https://", "https:///v1"),
        *("https://user:hunter2@example.org", "https://example.org/v1?key=1", "https://example.org/#x"),
        *("https://example.org/a b", "https://example.org/\n", "https://exämple.org", "https://[::1/x"),
        *("https://user:hunter2@[::1/x", "https://user:hunter2@example.org:port/"),
        *("https://example.org:port/", "http://example.org/v1", "http://127.0.0.1.example.org/"),
    ],
)
def test_addresses_that_are_not_asked(url):
    with pytest.raises(UserError) as told:
        check_url(url)
    assert len(str(told.value).splitlines()) == 1
    assert "hunter2" not in str(told.value)


def test_addresses_that_are():
    for url in ("https://example.org/v1", "http://localhost:8000/v1", "http://127.1.2.3/", "http://[::1]:8/"):
        check_url(url)
    assert check_url("http://example.org/v1", plain_http=True).netloc == "example.org"
    assert not is_loopback("10.0.0.1")


def test_the_key_comes_from_the_environment(monkeypatch):
    assert read_key(None) is None
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    assert read_key("A_KEY") == KEY
    for value in ("", "  ", "two words", "line\nbreak", "schlüssel"):
        monkeypatch.setenv("A_KEY", value)
        with pytest.raises(UserError, match="A_KEY") as told:
            read_key("A_KEY")
        assert not value.strip() or value not in str(told.value)
