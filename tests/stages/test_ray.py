"""Every stage of many shards makes the same artifact by Ray as in this process."""

import json

import pytest

from lightgen.recipes import find
from lightgen.stages.distill import distill
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.engine import LOCAL, EngineConfig
from lightgen.stages.evaluate import evaluate
from lightgen.stages.rank import rank
from tests.stages.test_evaluate import CONFIG
from tests.stages.toy import toy_distill

RAY, ONE = EngineConfig(name="ray", workers=2), EngineConfig(name="ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A local Ray, started once: that takes longer than any of these tests."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


def same(made):
    local, ray = made
    assert ray.manifest["files"] == local.manifest["files"]
    assert ray.manifest["config_digest"] == local.manifest["config_digest"]
    assert ray.counts == local.counts


@pytest.mark.slow
def test_distill(toy, tmp_path):
    same([toy.images, distill(toy_distill(), tmp_path / "images", engine=RAY)])


@pytest.mark.slow
def test_encode_and_rank(toy, tmp_path):
    config = EncodeConfig(shard_size=5, batch_size=4)
    latents = encode(config, tmp_path / "latents", [toy.images.path], toy.student.path, ONE)
    same([toy.latents, latents])
    ranked = [
        rank(find("rank", "verdict"), tmp_path / f"ranked-{e.name}", [toy.images.path], toy.detector.path, e)
        for e in (LOCAL, ONE)
    ]
    same(ranked)


@pytest.mark.slow
def test_a_student_draws_and_is_judged(toy, tmp_path):
    reports = [
        evaluate(CONFIG, tmp_path / f"report-{e.name}", [toy.student.path], (), toy.detector.path, e)
        for e in (LOCAL, ONE)
    ]
    local, ray = (json.loads((made.path / "report.json").read_text()) for made in reports)
    for subject in (*local["subjects"], *ray["subjects"]):
        cost = subject.pop("cost")
        assert cost["tflop_per_image"] > 0
    assert ray["subjects"] == local["subjects"]
    assert ray["settings"] == local["settings"]
