"""Guards: names, origins, sizes and numbers of requests, and what every answer has."""

import asyncio
import logging

import httpx
import pytest

from lightgen.core.errors import UserError
from lightgen.serve.config import ConnectionConfig, LimitConfig, ServeConfig
from lightgen.serve.guards import OWNER, check_access, is_loopback
from lightgen.serve.intake import BodyGuard, CrowdGuard, release_body
from lightgen.serve.keys import Keys
from tests.serve.served import EDITS, GENERATIONS, KEY, Model, asked, client, made, refusal

ASKED = {"prompt": "a red apple"}
OPEN_HOST = {"host": "192.0.2.1", "insecure_no_keys": True}


def test_what_only_this_machine_reaches():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1", "example.org", "")))


@pytest.mark.parametrize(
    "named",
    [
        {"host": "0.0.0.0"},
        {"host": "example.org"},
        {"allowed_hosts": ("pictures.example",)},
        {"allowed_hosts": ("localhost", "192.0.2.1")},
    ],
)
def test_other_machines_need_keys_whether_they_come_directly_or_through_a_proxy(named):
    with pytest.raises(UserError, match="without keys"):
        check_access(ServeConfig(**named), Keys())
    check_access(ServeConfig(**named), Keys([KEY]))
    check_access(ServeConfig(**named, insecure_no_keys=True), Keys())


def test_names_of_this_machine_need_no_keys():
    config = ServeConfig(host="::1", allowed_hosts=("localhost", "[::1]", "127.0.0.2"))
    check_access(config, Keys())


def test_origins_are_what_browsers_send():
    for origin in ("https://a.example", "http://localhost:3000", "http://[::1]:8080", "app://obsidian.md"):
        check_access(ServeConfig(cors_origins=(origin,)), Keys())
    for origin in (
        *("", "*", "null", "foo", "a.example", "https://", "https://*", "https://*.a.example"),
        *("https://a.example/", "https://a.example/page", "https://a.example:", "https://a.example:x"),
        *("https://A.example", "https://me@a.example", "https://a.example:443", "http://a.example:80"),
        *("https://a.example\n", "https://a.example, https://b.example"),
    ):
        with pytest.raises(UserError, match="--cors-origin: got .*, allowed: SCHEME://HOST"):
            check_access(ServeConfig(cors_origins=("https://a.example", origin)), Keys())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:8000", 200),
        ("mine.example", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
    ],
)
def test_a_server_of_this_machine_answers_to_its_own_names(host, status):
    config = ServeConfig(allowed_hosts=("mine.example",))
    found = asked(lambda each: each.get("/v1/models", headers={"host": host}), config=config)
    assert found.status_code == status
    if status == 400:
        refusal(found)


def test_a_server_of_others_answers_to_any_name_unless_told():
    for allowed, status in (((), 200), (("mine.example",), 400)):
        config = ServeConfig(**OPEN_HOST, allowed_hosts=allowed)
        found = asked(lambda each: each.get("/health", headers={"host": "any.example"}), config=config)
        assert found.status_code == status


def test_pages_of_others_may_not_ask():
    config = ServeConfig(cors_origins=("https://friend.example",))

    async def work(client):
        for origin in (
            "https://evil.example",
            "null",
            "http://localhost:9",
            "https://friend.example.evil.example",
        ):
            found = await client.post(GENERATIONS, json=ASKED, headers={"origin": origin})
            refusal(found, 403)
            assert "access-control-allow-origin" not in found.headers
        assert (
            await client.post(GENERATIONS, json=ASKED, headers={"origin": "http://localhost"})
        ).status_code == 200
        friend = {"origin": "https://friend.example"}
        found = await client.post(GENERATIONS, json=ASKED, headers=friend)
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == "https://friend.example"
        preflight = {**friend, "access-control-request-method": "POST"}
        found = await client.options(GENERATIONS, headers=preflight)
        assert found.status_code == 204 and "POST" in found.headers["access-control-allow-methods"]
        preflight["origin"] = "https://evil.example"
        refusal(await client.options(GENERATIONS, headers=preflight), 403)

    asked(work, config=config)


def test_every_answer_has_a_number_and_safe_headers():
    async def work(client):
        paths = ("/", "/health", "/nothing", "/v1/models", "/openapi.json")
        found = [await client.get(path) for path in paths]
        found += [await client.get("/health", headers={"host": "evil.example"})]
        return [*found, await client.post(GENERATIONS, json={})]

    found = asked(work)
    assert len({each.headers["x-request-id"] for each in found}) == len(found)
    for each in found:
        assert "default-src 'self'" in each.headers["content-security-policy"]
        assert "unsafe" not in each.headers["content-security-policy"]
        assert each.headers["x-content-type-options"] == "nosniff"
        assert each.headers["cache-control"] in ("no-store", "no-cache")
        assert "server" not in each.headers


def test_what_broke_is_told_to_the_log_and_not_to_the_client(caplog):
    class Broken(Model):
        def check(self, request):
            raise RuntimeError("broke on /secret/place at 10.0.0.1")

    with caplog.at_level(logging.ERROR):
        found = asked(lambda each: each.post(GENERATIONS, json=ASKED), Broken())
    told = refusal(found, 500)
    assert "secret" not in found.text and found.headers["x-request-id"] in told
    assert found.headers["x-request-id"] in caplog.text and "broke on /secret/place" in caplog.text


def test_bodies_are_limited_by_what_they_say_and_by_what_they_are():
    config = ServeConfig(limits=LimitConfig(max_body_bytes=2000))
    given = 0

    async def endless():
        nonlocal given
        for _ in range(1000):
            given += 1
            yield b"x" * 500

    async def work(client):
        kind = {"content-type": "multipart/form-data; boundary=b"}
        for headers in ({"content-length": "2001"}, {"content-length": "9" * 30}, {"content-length": "-1"}):
            refusal(await client.post(EDITS, content=endless(), headers=kind | headers), 413)
        assert given == 0
        found = await client.post(EDITS, content=b"--b\r\n" + b"x" * 1990, headers=kind)
        refusal(found)
        preamble = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'

        async def file():
            yield preamble
            async for chunk in endless():
                yield chunk

        found = await client.post(EDITS, content=file(), headers=kind)
        assert "at most 2000 bytes" in refusal(found, 413)
        assert found.headers["connection"] == "close"

    asked(work, config=config)
    assert given < 10, "more was read than is allowed"


def receiver(*messages):
    waiting = list(messages)

    async def receive():
        if not waiting:
            await asyncio.sleep(60)
        return waiting.pop(0)

    return receive


def chunk(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


def scope(owner="me"):
    return {"type": "http", "headers": [], "method": "POST", "path": "/", OWNER: owner}


def test_a_slow_body_ends_and_all_bodies_together_are_bounded():
    problems = []

    async def app(scope, receive, send):
        try:
            while (await receive())["more_body"]:
                pass
        except Exception as error:
            problems.append(error)
            raise
        await asyncio.sleep(0.1)

    async def work():
        guard = BodyGuard(app, 1000, 0.1)
        with pytest.raises(Exception, match="0.1 s"):
            await guard(scope(), receiver(chunk(b"x")), None)
        for owners in (["me"] * 4 + ["other"], [str(number % 5) for number in range(10)], ["me", "other"]):
            calls = [guard(scope(owner), receiver(chunk(b"x" * 900, False)), None) for owner in owners]
            await asyncio.gather(*calls, return_exceptions=True)  # all was given back

    asyncio.run(work())
    assert [each.status for each in problems] == [408, 429, 429, 503, 503]


def test_a_body_counts_until_it_is_not_needed_any_more():
    async def app(scope, receive, send):
        await receive()
        release_body(scope)
        await asyncio.sleep(0.1)

    async def work():
        guard = BodyGuard(app, 1000, 1.0)
        calls = [guard(scope(), receiver(chunk(b"x" * 900, False)), None) for _ in range(10)]
        await asyncio.gather(*calls)

    asyncio.run(work())


def test_beyond_a_number_of_requests_there_is_503():
    sent = []

    async def app(scope, receive, send):
        await asyncio.sleep(0.05)
        sent.append(200)

    async def send(message):
        if message["type"] == "http.response.start":
            sent.append(message["status"])

    async def work():
        guard = CrowdGuard(app, 2)
        await asyncio.gather(*(guard(scope(), None, send) for _ in range(3)))
        await guard(scope(), None, send)

    asyncio.run(work())
    assert sorted(sent) == [200, 200, 200, 503]


def test_a_client_that_leaves_while_it_sends_is_no_error(caplog):
    app, _ = made()

    async def work():
        sent = []

        async def send(message):
            sent.append(message)

        async with app.router.lifespan_context(app):
            gone = receiver(chunk(b"{"), {"type": "http.disconnect"})
            asked = scope() | {
                "path": GENERATIONS,
                "raw_path": GENERATIONS.encode(),
                "query_string": b"",
                "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            }
            await app(asked, gone, send)
        return sent

    with caplog.at_level(logging.WARNING):
        asyncio.run(work())
    assert caplog.text == ""


def test_a_limited_server_still_serves():
    config = ServeConfig(connections=ConnectionConfig(max_connections=1))

    async def work():
        async with client(config=config) as found:
            return await found.post(GENERATIONS, json=ASKED)

    assert isinstance(asyncio.run(work()), httpx.Response)
