"""Metrics as Prometheus reads them, and the sampler of the event loop's lag."""

import asyncio
import os
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lightgen.serve import metrics as metrics_module
from lightgen.serve.metrics import EventLoopLag, Metrics, resident_bytes


def samples(metrics):
    """Value of each sample by (name, label values)."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_what_is_counted_is_told():
    metrics = Metrics()
    metrics.count_request("/v1/images/jobs/{id}", 404)
    metrics.count_pictures("done")
    metrics.count_pictures("refused_key", 3)
    metrics.see_iteration(0.2, 5)
    metrics.see_start(1.5)
    metrics.see_end(2.5)
    metrics.count_error()
    metrics.watch_queue(lambda: 7, lambda: 2)
    found = samples(metrics)
    assert found["lightgen_requests_total", "/v1/images/jobs/{id}", "404"] == 1
    assert found["lightgen_pictures_total", "done"] == 1
    assert found["lightgen_pictures_total", "refused_key"] == 3
    assert found[("lightgen_batch_size_sum",)] == 5
    assert found[("lightgen_iteration_seconds_sum",)] == pytest.approx(0.2)
    assert found[("lightgen_wait_seconds_sum",)] == 1.5
    assert found[("lightgen_decode_seconds_sum",)] == 2.5
    assert found[("lightgen_worker_errors_total",)] == 1
    assert found[("lightgen_queue_length",)] == 7
    assert found[("lightgen_running",)] == 2


def test_two_servers_in_a_process_count_apart():
    one, other = Metrics(), Metrics()
    one.count_pictures("done")
    assert ("lightgen_pictures_total", "done") not in samples(other)


def test_memory_is_that_of_the_process(monkeypatch, tmp_path):
    before = resident_bytes()
    assert 2**20 < before < 2**40
    block = bytearray(os.urandom(2**16) * 2**10)  # 64 MiB, every page of it written
    assert resident_bytes() - before > 0.8 * len(block)
    assert samples(Metrics())[("lightgen_resident_memory_bytes",)] > before
    monkeypatch.setattr(metrics_module, "_STATM", tmp_path / "none")
    assert resident_bytes() > 2**20


def test_a_blocked_event_loop_is_seen():
    metrics = Metrics()

    async def main():
        lag = EventLoopLag(metrics, every_s=0.02)
        lag.start()
        await asyncio.sleep(0.1)
        calm = lag.last_s
        time.sleep(0.3)
        await asyncio.sleep(0.01)
        blocked = lag.last_s
        await lag.stop()
        await lag.stop()
        return calm, blocked

    calm, blocked = asyncio.run(main())
    assert calm < blocked
    assert 0.2 < blocked < 5
    assert samples(metrics)[("lightgen_event_loop_lag_seconds_count",)] >= 2
