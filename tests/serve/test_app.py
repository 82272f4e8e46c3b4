"""The application: what is where, what the document says, and that strangers find nothing else."""

import asyncio
import json

import numpy as np
import pytest

from lightgen.serve.app import create_app
from lightgen.serve.config import LimitConfig, QueueConfig, ServeConfig
from lightgen.serve.metrics import Metrics
from lightgen.serve.shapes import ModelsAnswer
from lightgen.serve.worker import Worker
from tests.serve.served import EDITS, GENERATIONS, JOBS, Model, asked, client, post, refusal, served

ASKED = {"prompt": "a red apple"}


def test_the_models_are_told():
    async def work(client):
        listed = ModelsAnswer.model_validate((await client.get("/v1/models")).json())
        one = await client.get("/v1/models/fake")
        refusal(await client.get("/v1/models/nothing"), 404)
        return listed.data[0], one.json()

    first, one = asked(work)
    assert first.model_dump() == one
    assert (first.lightgen.unit, first.lightgen.default_size, first.lightgen.max_side) == (16, "32x32", 1024)
    assert first.lightgen.presets == ["exact", "balanced", "fast"]


def test_several_models_are_asked_by_name_and_the_first_by_none():
    models = {"one": Model(), "other": Model(default_size=(48, 48))}
    worker = Worker(models, QueueConfig(), Metrics())
    app = create_app(ServeConfig(), worker, models)

    async def work():
        import httpx

        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            return [
                (await client.post(GENERATIONS, json={**ASKED, "model": name})).json()["size"]
                for name in (None, "other")
            ]

    assert asyncio.run(work()) == ["32x32", "48x48"]
    assert len(models["one"].requests) == len(models["other"].requests) == 1


def test_a_server_that_ends_is_alive_and_not_ready():
    async def work():
        async with client() as found:
            assert (await found.get("/ready")).json() == {"status": "ready"}
            await found._transport.app.state.worker.drain(1)
            late = await found.post(GENERATIONS, json=ASKED)
            refusal(late, 503)
            assert "retry-after" in late.headers
            assert (await found.get("/ready")).status_code == 503
            assert (await found.get("/health")).status_code == 200

    asyncio.run(work())


def test_metrics_name_routes_and_never_what_was_sent():
    async def work(client):
        await client.post(GENERATIONS, json=ASKED)
        await client.get("/some/secret/path")
        await client.get(f"{JOBS}/job_{'0' * 32}")
        await client.get("/health", headers={"host": "evil.example"})
        return (await client.get("/metrics")).text

    told = asked(work)
    assert 'lightgen_requests_total{route="/v1/images/generations",status="200"} 1.0' in told
    assert 'lightgen_requests_total{route="/v1/images/jobs/{name}",status="404"} 1.0' in told
    assert "secret" not in told and "evil" not in told
    assert 'lightgen_pictures_total{fate="done"} 1.0' in told


def test_the_page_is_served_with_a_tag_and_nothing_beside_it():
    async def work(client):
        first = await client.get("/")
        assert first.headers["content-type"] == "text/html; charset=utf-8"
        again = await client.get("/", headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304 and again.content == b""
        script = await client.get("/page/app.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert (await client.head("/")).status_code == 200
        for path in (
            "/page/../app.py",
            "/page/%2e%2e/app.py",
            "/page/..%2fapp.py",
            "/page/",
            "/page",
            "/app.py",
        ):
            refusal(await client.get(path), 404)

    asked(work)


def test_paths_and_methods_that_are_none():
    async def work(client):
        for path in ("/docs", "/redoc", "/v1", "/v1/images/generations/", "/%00"):
            refusal(await client.get(path), 404)
        for path in (GENERATIONS, EDITS, "/v1/models", "/health"):
            for method in ("PUT", "PATCH", "TRACE"):
                found = await client.request(method, path)
                refusal(found, 405)
                assert found.headers["allow"]

    asked(work)


def test_the_document_says_what_is_so():
    config = ServeConfig(limits=LimitConfig(max_pictures=3))
    document = asked(lambda client: client.get("/openapi.json"), config=config).json()
    assert "422" not in str(document) and "HTTPValidationError" not in str(document)
    operation = document["paths"][GENERATIONS]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False and body["required"] == ["prompt"]
    assert body["properties"]["n"]["anyOf"][0]["maximum"] == 3
    edit = document["paths"][EDITS]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert edit["properties"]["image"]["format"] == "binary" and "image" in edit["required"]
    assert set(operation["responses"]) >= {
        "200",
        "202",
        "400",
        "401",
        "404",
        "408",
        "413",
        "415",
        "429",
        "503",
        "504",
    }


@pytest.mark.filterwarnings("ignore")
def test_the_document_holds_against_whatever_is_generated_from_it():
    """Only answers that the document names, of its shapes, and never 500 for what strangers send."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks as openapi

    wanted = [
        not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_schema_conformance,
        openapi.negative_data_rejection,
        openapi.unsupported_method,
    ]
    config = ServeConfig(limits=LimitConfig(max_pictures=2, max_iterations=4), drain_s=5)
    with served(Model(), config) as site:
        schema = schemathesis.openapi.from_url(f"{site.url}/openapi.json")
        operations = [each.ok() for each in schema.get_all_operations()]
        assert len(operations) == 9
        for operation in operations:

            @given(case=operation.as_strategy())
            @seed(7)
            @settings(
                max_examples=15,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def holds(case):
                case.call_and_validate(checks=wanted)

            holds()


def test_a_real_model_draws_what_the_pipeline_draws():
    import base64
    import io

    from PIL import Image

    from lightgen.stages.drawing import open_pipeline
    from lightgen.stages.live import open_live

    live = open_live("nano")
    values = {
        "prompt": "a red apple",
        "seed": 11,
        "num_inference_steps": 2,
        "num_head_steps": 2,
        "size": "64x64",
    }

    async def work(client):
        alone = (await client.post(GENERATIONS, json=values)).json()
        both = (await client.post(GENERATIONS, json={**values, "n": 2, "seed": 10})).json()
        return alone["data"][0], both["data"][1]

    alone, second = asked(work, live)
    image, other = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each["b64_json"])))).astype(int)
        for each in (alone, second)
    )
    assert np.abs(image - other).max() <= 1
    pipeline, _ = open_pipeline("nano")
    own = pipeline(
        "a red apple",
        height=64,
        width=64,
        seeds=[11],
        preset="fast",
        num_inference_steps=2,
        num_head_steps=2,
        output_type="pil",
    ).images[0]
    assert np.abs(image - np.asarray(own).astype(int)).max() <= 1
    facts = json.loads(Image.open(io.BytesIO(base64.b64decode(alone["b64_json"]))).info["lightgen"])
    assert facts["model"] == "fake", "the name that requests call it by"


def test_text_that_is_too_long_for_the_model_is_drawn_all_the_same():
    assert post({"prompt": "word " * 300}).status_code == 200
