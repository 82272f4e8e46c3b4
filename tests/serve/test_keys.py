"""API keys: who has one is let in, by header alone; what is kept of them is no key."""

import asyncio

import httpx
import pytest

from lightgen.core.errors import UserError
from lightgen.serve.app import create_app
from lightgen.serve.config import ServeConfig
from lightgen.serve.keys import VARIABLE, Keys, load_keys
from lightgen.serve.metrics import Metrics
from lightgen.serve.worker import Worker
from tests.serve.served import GENERATIONS, KEY, OTHER_KEY, Model, asked, refusal


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the tests\n\n{KEY}\n  {OTHER_KEY}  \n")
    return ServeConfig(api_key_file=file)


def test_only_keys_have_owners_and_each_its_own():
    keys = Keys([KEY, OTHER_KEY])
    owners = {keys.owner(KEY), keys.owner(OTHER_KEY)}
    assert len(keys) == 2 and len(owners) == 2 and None not in owners
    for text in ("", KEY[:-1], KEY + "x", KEY.upper(), "é" * 20, "\ud800" * 20):
        assert keys.owner(text) is None


def test_nothing_that_is_kept_is_a_key():
    keys = Keys([KEY])
    assert KEY not in repr(vars(keys)) and KEY not in str(keys.owner(KEY))


def test_every_key_is_compared_whichever_is_right(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append(other) or one == other)
    keys = Keys([KEY, OTHER_KEY])
    for text in (KEY, OTHER_KEY, "nothing of the kind"):
        compared.clear()
        keys.owner(text)
        assert len(compared) == 2 and all(len(each) == 32 for each in compared)


def test_keys_come_from_a_file_or_the_environment(config, monkeypatch):
    assert load_keys(config.api_key_file).owner(OTHER_KEY)
    assert not load_keys(None)
    monkeypatch.setenv(VARIABLE, f"{KEY}, {OTHER_KEY}")
    assert load_keys(None).owner(OTHER_KEY) and len(load_keys(None)) == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n", "with a blank in it\n", "é" * 20, "x" * 600])
def test_a_file_that_holds_no_keys_is_refused(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_keys(file)
    assert text.strip() not in str(caught.value) or not text.strip()
    with pytest.raises(UserError):
        load_keys(tmp_path / "missing")


def test_who_has_a_key_is_let_in(config):
    async def work(client):
        for value in (f"Bearer {KEY}", f"bearer {OTHER_KEY}"):
            assert (await client.get("/v1/models", headers={"authorization": value})).status_code == 200
        for value in ("", "Bearer", "Bearer x", f"Basic {KEY}", KEY, f"Bearer {KEY} x"):
            found = await client.get("/v1/models", headers={"authorization": value})
            refusal(found, 401)
            assert found.headers["www-authenticate"] == "Bearer"
        for path in (
            GENERATIONS,
            "/metrics",
            "/nothing",
            "/page",
            "/v1/images/jobs/x",
            f"/v1/models?key={KEY}",
        ):
            refusal(await client.get(path), 401)
        for path in ("/health", "/ready", "/", "/openapi.json"):
            assert (await client.get(path)).status_code == 200

    asked(work, config=config)


def test_keys_that_are_given_are_not_read_again(config):
    app = create_app(
        config, Worker({"fake": Model()}, config.queue, Metrics()), {"fake": Model()}, keys=Keys([OTHER_KEY])
    )

    async def work():
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                found = [
                    await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
                    for key in (KEY, OTHER_KEY)
                ]
        return [each.status_code for each in found]

    assert asyncio.run(work()) == [401, 200]


def test_the_document_says_that_a_key_is_needed(config):
    document = asked(lambda client: client.get("/openapi.json"), config=config).json()
    assert document["paths"][GENERATIONS]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]
    assert "security" not in str(asked(lambda client: client.get("/openapi.json")).json()["paths"])
