"""The OpenAPI document against the server: requests that its schemas allow, and requests that they do not."""

import logging
import re

import httpx
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.openapi import from_dict

from lightgen.serve.config import ConnectionConfig, QueueConfig, ServeConfig
from tests.serve.served import EDITS, GENERATIONS, made, served

load_all_checks()
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
# The document says of a stream that it is text; schemathesis takes that for one event's schema.
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "additionalProperties": False,
    "properties": {
        "event": {
            "pattern": r"^(image_(generation|edit)\.(partial_image|completed)|lightgen\.progress|error)$"
        },
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


def document():
    found = made()[0].openapi()
    for path in (GENERATIONS, EDITS):
        found["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"] = EVENT
    return found


OPERATIONS = [each.ok() for each in from_dict(document()).get_all_operations()]
# A model's name may be anything, so nothing that is asked of its route is against the document.
ASKING = [each for each in OPERATIONS if each.body or "jobs" in each.path]
# What a schema allows may still be refused, as a picture that is larger than the model makes.
BEYOND_THE_SCHEMA = ("positive_data_acceptance",)
# What the test does not do: objects are made and used by other tests, and no key is asked for here.
ELSEWHERE = ("ignored_auth", "use_after_free", "ensure_resource_availability", "object_level_authorization")
STRICTER = ("not_a_server_error",)  # as below
EXCLUDED = [CHECKS.get_one(name) for name in (*BEYOND_THE_SCHEMA, *ELSEWHERE, *STRICTER)]


def no_fault_of_the_server(context, response, case):
    """No 5xx but for who gives the server next to no time, and nothing of its insides in an answer."""
    text = response.content.decode("utf-8", "replace")
    assert response.status_code < 500 or (response.status_code == 504 and "deadline_exceeded" in text), text
    assert response.status_code < 400 or not re.search(
        r"Traceback|\.py\b|site-packages|0x[0-9a-f]{6}", text
    ), text


@pytest.fixture(scope="module")
def server():
    config = ServeConfig(
        drain_s=5,
        queue=QueueConfig(max_waiting=10_000, max_per_key=10_000),
        connections=ConnectionConfig(body_timeout_s=2.0),
    )
    with served(config=config) as found:
        yield found


def check(server, operation, mode, count, caplog):
    """Send so many requests of an operation, and check each answer against the document."""

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        case.call_and_validate(
            base_url=server.url,
            session=session,
            excluded_checks=EXCLUDED,
            additional_checks=[no_fault_of_the_server],
            timeout=30,
        )

    with requests.Session() as session, caplog.at_level(logging.WARNING):
        send()
    assert [
        each.getMessage() for each in caplog.records if each.name.startswith(("lightgen", "uvicorn"))
    ] == []
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
def test_what_the_document_allows_is_answered_as_it_says(server, operation, caplog):
    check(server, operation, POSITIVE, 40, caplog)


@pytest.mark.parametrize("operation", ASKING, ids=lambda each: each.label)
def test_what_the_document_does_not_allow_is_refused(server, operation, caplog):
    check(server, operation, NEGATIVE, 40, caplog)


# Of forms, schemathesis breaks on its own binary values sooner or later when they shall be wrong.
MANY = [
    (each, mode) for each in ASKING for mode in (POSITIVE, NEGATIVE) if (each.path, mode) != (EDITS, NEGATIVE)
]


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "mode"), MANY, ids=lambda each: getattr(each, "label", each))
def test_so_it_is_for_many_requests(server, operation, mode, caplog):
    check(server, operation, mode, 400, caplog)
