import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt, Requirement
from lightgen.data.images import ImageRecord, ImageShards, write_image_shard
from lightgen.evals.scores import ImageVerdict
from lightgen.ports.protocols import Detection
from lightgen.stages import rank as stage
from lightgen.stages.rank import RankConfig, rank, score_of

BOX = (0.0, 0.0, 8.0, 8.0)


class Oracle:
    """A detector that sees what the emoji teacher's records say, except in every third picture."""

    def __init__(self, images):
        self.shards, self.at = ImageShards(images), 0

    def detect(self, images, labels):
        found = []
        for _ in images:
            objects = self.shards.meta(self.at)["objects"] if self.at % 3 else []
            self.at += 1
            found.append(
                [
                    Detection(
                        o["class"], 0.95, tuple(map(float, o["box"])), colors={o["color"] or "red": 1.0}
                    )
                    for o in objects
                ]
            )
        return found


def test_score_is_one_for_right_and_a_little_for_confidence():
    prompt = Prompt(prompt="x", include=(Requirement(name="dog", count=2), Requirement(name="cat")))
    detections = tuple(
        Detection(name, score, BOX) for name, score in (("dog", 0.8), ("dog", 0.6), ("dog", 0.9))
    )
    verdict = ImageVerdict(prompt, False, "", ("count",), detections)
    assert score_of(verdict, 0.3) == pytest.approx(0.3 * (0.9 + 0.8 + 0.0) / 3)
    assert score_of(ImageVerdict(prompt, True, ""), 0.3) == 1.0


def test_by_verdict(toy, tmp_path, monkeypatch):
    oracle = Oracle(toy.images.path)
    monkeypatch.setattr(stage, "load_detector", lambda _: oracle)
    made = rank(RankConfig(shard_size=5), tmp_path / "ranked", [toy.images.path], toy.detector.path)
    assert [parent["digest"] for parent in made.parents] == [toy.images.digest, toy.detector.digest]
    before, after = ImageShards(toy.images.path), ImageShards(made.path)
    assert len(after) == 12
    for i in range(12):
        old, new = before.encoded(i), after.encoded(i)
        assert (old.key, old.data) == (new.key, new.data), "nothing is encoded anew"
        assert new.meta["correct"] is bool(i % 3)
        assert new.meta["score"] == pytest.approx(1.095 if i % 3 else 0.0)
        assert ("expected" in new.meta["reason"]) is (i % 3 == 0)
        assert {name: new.meta[name] for name in old.meta} == dict(old.meta)


def test_by_source(toy, tmp_path):
    made = rank(RankConfig(by="source"), tmp_path / "ranked", [toy.images.path, toy.images.path])
    shards = ImageShards(made.path)
    assert made.counts == {"images": 24, "sources": 2}
    assert [shards.meta(i)["score"] for i in (0, 11, 12, 23)] == [2.0, 2.0, 1.0, 1.0]
    assert [shards.key(i).split("/")[0] for i in (0, 11, 12, 23)] == ["0", "0", "1", "1"]


def test_a_killed_run_continues(toy, tmp_path, monkeypatch):
    write, names = stage.write_encoded_shard, []

    def write_or_die(path, records):
        names.append(path.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return write(path, records)

    whole = rank(RankConfig(by="source", shard_size=5), tmp_path / "whole", [toy.images.path])
    monkeypatch.setattr(stage, "write_encoded_shard", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        rank(RankConfig(by="source", shard_size=5), tmp_path / "ranked", [toy.images.path])
    made = rank(RankConfig(by="source", shard_size=5), tmp_path / "ranked", [toy.images.path])
    assert names == [f"images-0000{i}.tar" for i in (0, 1, 1, 2)]
    assert made.manifest["files"] == whole.manifest["files"]


def test_what_is_refused(toy, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_image_shard(
        other / "a.tar",
        [ImageRecord("k", ImageShards(toy.images.path)[0].image, {"prompt": "no such prompt"})],
    )
    with pytest.raises(UserError, match="inputs 0 and 1 differ in prompt"):
        rank(RankConfig(by="source"), tmp_path / "x", [toy.images.path, other])
    with pytest.raises(UserError, match="neither include nor exclude"):
        rank(RankConfig(), tmp_path / "x", [other], toy.detector.path)
    with pytest.raises(UserError, match="checkpoint with detector"):
        rank(RankConfig(), tmp_path / "x", [toy.images.path], toy.student.path)
