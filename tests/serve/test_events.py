"""Streams: events in their order, one at a time, and an end of the work when nobody listens."""

import base64
import io
import json
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.serve.config import ConnectionConfig, QueueConfig, ServeConfig
from lightgen.serve.service import Checks
from tests.serve.served import EDITS, GENERATIONS, Model, events, picture, post, queue, refusal, saved, served

ASKED = {"prompt": "a red apple", "seed": 3, "stream": True}


def names(found):
    return [name for name, _ in found]


def eventually(holds, seconds=5.0):
    """Whether something holds, now or soon."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def test_a_stream_ends_with_the_picture():
    answer = post(ASKED)
    assert answer.headers["content-type"].startswith("text/event-stream")
    ((name, data),) = events(answer.text)
    assert name == data["type"] == "image_generation.completed"
    image = Image.open(io.BytesIO(base64.b64decode(data["b64_json"])))
    assert (np.asarray(image) == 3).all() and "lightgen" in image.info
    assert (data["index"], data["seed"], data["size"]) == (0, 3, "32x32")
    assert data["usage"]["total_tokens"] == 4


def test_partial_images_and_progress_come_in_order():
    with served(Model(step_s=0.02)) as site:
        answer = httpx.post(
            site.url + GENERATIONS, json={**ASKED, "progress": True, "partial_images": 2, "n": 2}
        )
    found = events(answer.text)
    for index in range(2):
        own = [(name, data) for name, data in found if data["index"] == index]
        partial = [data for name, data in own if name == "image_generation.partial_image"]
        assert [data["partial_image_index"] for data in partial] == list(range(len(partial)))
        assert 1 <= len(partial) <= 2
        told = [data.get("progress", data) for _, data in own[:-1] if "position" not in data]
        assert [each["iteration"] for each in told] == sorted({each["iteration"] for each in told})
        assert own[-1][0] == "image_generation.completed" and own[-1][1]["seed"] == 3 + index
        bits = np.unpackbits(np.frombuffer(base64.b64decode(told[0]["known"]), np.uint8))
        rows, columns = told[0]["grid"]
        assert len(bits) == -(-rows * columns // 8) * 8
    assert "lightgen.progress" in names(found)


def test_who_waits_is_told_how_many_are_before():
    config = queue(max_running=1)
    values = {**ASKED, "progress": True, "n": 3, "num_inference_steps": 2}
    with served(Model(step_s=0.6), config=config) as site:
        answer = httpx.post(site.url + GENERATIONS, json=values, timeout=20)
    places = [(data["index"], data["position"]) for _, data in events(answer.text) if "position" in data]
    own = [place for index, place in places if index == 2]
    assert own == sorted(own, reverse=True) and {1, 2} & set(own), places
    assert names(events(answer.text)).count("image_generation.completed") == 3


def test_events_that_are_not_openais_come_only_when_asked_for():
    answer = post({**ASKED, "partial_images": 1})
    assert set(names(events(answer.text))) <= {"image_generation.partial_image", "image_generation.completed"}


def test_edits_have_events_of_their_own():
    with served() as site:
        files = {"image": saved(picture())}
        data = {"prompt": "a", "stream": "true", "partial_images": "1"}
        answer = httpx.post(site.url + EDITS, data=data, files=files)
    assert set(names(events(answer.text))) <= {"image_edit.partial_image", "image_edit.completed"}
    assert names(events(answer.text))[-1] == "image_edit.completed"


def test_each_event_is_sent_at_once():
    gate = threading.Semaphore(0)
    with (
        served(Model(gate=gate)) as site,
        httpx.stream(
            "POST",
            site.url + GENERATIONS,
            json={**ASKED, "progress": True, "num_inference_steps": 4},
            timeout=10,
        ) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line.startswith("event"))
        assert next(lines) == "event: lightgen.progress"  # nothing was computed yet
        for _ in range(3):
            gate.release()
            assert next(lines) == "event: lightgen.progress"
        gate.release()
        assert "event: image_generation.completed" in list(lines)


def test_a_stream_shows_that_it_lives():
    config = ServeConfig(connections=ConnectionConfig(heartbeat_s=0.1))
    answer = post({**ASKED, "num_inference_steps": 2}, model=Model(step_s=0.3), config=config)
    assert answer.text.count("\n: ") + answer.text.startswith(": ") >= 2
    assert names(events(answer.text)) == ["image_generation.completed"]


def test_an_error_after_the_start_is_an_event():
    answer = post({**ASKED, "n": 2}, model=Model(fails={"step": 1}))
    found = events(answer.text)
    assert answer.status_code == 200 and names(found) == ["error", "error"]
    assert {data["index"] for _, data in found} == {0, 1}
    assert found[0][1]["error"]["type"] == "server_error" and "secret" not in answer.text


def test_what_is_refused_before_the_start_is_a_status():
    refusal(post({**ASKED, "n": 0}))
    config = ServeConfig(queue=QueueConfig(max_per_key=8))
    with (
        served(Model(gate=threading.Semaphore(0)), config) as site,
        httpx.stream("POST", site.url + GENERATIONS, json={**ASKED, "n": 8}),
    ):
        refusal(httpx.post(site.url + GENERATIONS, json=ASKED), 429)


def test_one_picture_that_may_not_be_shown_does_not_hide_the_others():
    checks = Checks(picture=lambda image: int(image[0, 0, 0]) not in (4, 7))
    found = events(post({**ASKED, "n": 2, "partial_images": 2}, checks=checks).text)
    assert sorted(names(found)) == ["error", "image_generation.completed"]
    told = dict(found)
    assert told["error"]["error"]["code"] == "content_policy_violation" and told["error"]["index"] == 1


@pytest.mark.parametrize("values", [ASKED, {**ASKED, "stream": False}])
def test_who_leaves_stops_the_work_within_an_iteration(values):
    gate = threading.Semaphore(0)
    model = Model(gate=gate)
    with served(model) as site:
        with (
            pytest.raises(httpx.ReadTimeout),
            httpx.stream(
                "POST", site.url + GENERATIONS, json={**values, "num_inference_steps": 100}, timeout=0.5
            ) as answer,
        ):
            answer.read()
        assert eventually(lambda: model.pictures)
        fate = ("lightgen_pictures_total", {"fate": "cancelled"})
        assert eventually(lambda: site.worker.metrics.registry.get_sample_value(*fate) == 1)
        gate.release()  # the iteration in progress
        assert eventually(lambda: not model.pictures), "it is still drawn"
        gate.release(3)
        assert len(model.seeds("step")) <= 1
        gate.release(1000)
        assert httpx.post(site.url + GENERATIONS, json={**ASKED, "stream": False}).status_code == 200


def ask_reading_little(slow, site, values):
    """Send a request, by a socket that takes little of the answer unless it is read."""
    body = json.dumps(values).encode()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", site.port))
    slow.sendall(
        b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )


class Noisy(Model):
    """Pictures that no file makes small."""

    def preview(self, pictures):
        random = numpy_draws(0, "test-noise")
        return [random.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in pictures]


def test_a_client_that_reads_slowly_has_more_time_than_one_that_sends():
    assert ConnectionConfig().write_timeout_s >= 120
    config = ServeConfig(connections=ConnectionConfig(body_timeout_s=0.2, write_timeout_s=20), drain_s=5)
    values = {**ASKED, "partial_images": 64, "num_inference_steps": 64}
    with served(Noisy(step_s=0.02, default_size=(256, 256)), config) as site, socket.socket() as slow:
        ask_reading_little(slow, site, values)
        time.sleep(2)  # the server waits for it, and for longer than a body may take
        got = b""
        while b"image_generation.completed" not in got:
            data = slow.recv(1 << 16)
            assert data, "it was cut off"
            got += data


def test_a_client_that_reads_nothing_is_let_go():
    config = ServeConfig(connections=ConnectionConfig(write_timeout_s=0.5), drain_s=5)
    values = {**ASKED, "partial_images": 64, "num_inference_steps": 256}
    model = Noisy(step_s=0.05, default_size=(256, 256))
    with served(model, config) as site, socket.socket() as slow:
        ask_reading_little(slow, site, values)
        assert eventually(lambda: model.pictures)
        assert eventually(lambda: not model.pictures and not site.server.server_state.tasks, 15)
        assert len(model.seeds("step")) < 256, "it was drawn to the end for nobody"
