"""Threads of the service: one owner's requests do not keep another's waiting."""

import asyncio
import threading

from lightgen.serve.config import ServeConfig
from lightgen.serve.metrics import Metrics
from lightgen.serve.service import Checks, Service
from lightgen.serve.worker import Worker
from tests.serve.fake_live import until
from tests.serve.served import GENERATIONS, KEY, OTHER_KEY, Model, asked


def test_one_owner_s_slow_requests_keep_nobody_else_waiting(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{OTHER_KEY}\n")
    gate, lock, reading, most = threading.Event(), threading.Lock(), 0, 0

    def check(text):
        nonlocal reading, most
        if text != "slow":
            return
        with lock:
            reading += 1
            most = max(most, reading)
        gate.wait(20)
        with lock:
            reading -= 1

    async def work(client):
        own, other = ({"authorization": f"Bearer {key}"} for key in (KEY, OTHER_KEY))
        slow = [
            asyncio.ensure_future(client.post(GENERATIONS, json={"prompt": "slow"}, headers=own))
            for _ in range(6)
        ]
        await until(lambda: reading == 2)
        quick = client.post(GENERATIONS, json={"prompt": "quick"}, headers=other)
        try:
            found = await asyncio.wait_for(quick, 5)
        finally:
            gate.set()
        return [found.status_code, *(each.status_code for each in await asyncio.gather(*slow))]

    found = asked(work, config=ServeConfig(api_key_file=file), checks=Checks(prompt=check))
    assert found == [200] * 7 and most == 2


def test_a_turn_lasts_until_its_thread_is_through_even_if_nobody_waits():
    models = {"fake": Model()}
    config = ServeConfig()
    service = Service(config, Worker(models, config.queue, Metrics()), models, Checks(), None)
    gate, began = threading.Event(), []

    def slow(number):
        began.append(number)
        gate.wait(20)

    async def work():
        tasks = [asyncio.ensure_future(service.read("me", slow, number)) for number in range(3)]
        await until(lambda: len(began) == 2)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.sleep(0.05)
        assert began == [0, 1]
        gate.set()
        await tasks[2]
        assert began == [0, 1, 2]
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        asyncio.run(work())
    finally:
        gate.set()
        service.close()
