import json
from dataclasses import replace

import numpy as np
import pytest

from lightgen.core.artifact import Artifact, ArtifactError, begin_artifact, open_artifact
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.data.images import ImageShards
from lightgen.data.prompts import write_prompts
from lightgen.ports.endpoint import EndpointTeacherConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.ports.refusal import RefusedPrompt
from lightgen.stages import distill as stage
from lightgen.stages.distill import NanoPrompts, distill, nano_prompts
from lightgen.stages.teachers import TeacherPlace
from tests.stages.toy import SIDE, toy_distill, toy_student

SHARDS = ["images-00000.tar", "images-00001.tar", "images-00002.tar"]


def test_records_know_all_about_themselves(toy):
    shards = ImageShards(toy.images.path)
    assert len(shards) == 12
    assert toy.images.counts == {"images": 12, "prompts": 12}
    record = shards[3]
    wanted = nano_prompts(NanoPrompts(num=12))[3]
    assert record.image.shape == (SIDE, SIDE, 3)
    assert Prompt.from_json(dict(record.meta)).include == wanted.include
    assert record.meta["prompt"] == wanted.prompt
    assert record.meta["generator"] == "emoji"
    assert record.meta["errors"] == []
    assert {"class", "color", "box", "mask"} <= set(record.meta["objects"][0])
    assert isinstance(record.meta["seed"], int)


def test_a_second_run_does_nothing(toy, monkeypatch):
    monkeypatch.setattr(stage, "write_image_shard", lambda *_: pytest.fail("drawn again"))
    assert distill(toy_distill(), toy.images.path).digest == toy.images.digest


def test_another_config_is_refused(toy):
    with pytest.raises(ArtifactError, match="config.seed 0, now 1"):
        distill(toy_distill(seed=1), toy.images.path)


def test_a_killed_run_continues_and_ends_the_same(toy, tmp_path, monkeypatch):
    write, names = stage.write_image_shard, []

    def write_or_die(path, records, format):
        names.append(path.name)
        if len(names) == 2:
            next(iter(records))
            raise KeyboardInterrupt
        return write(path, records, format)

    monkeypatch.setattr(stage, "write_image_shard", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        distill(toy_distill(), tmp_path / "images")
    assert not (tmp_path / "images").exists()
    finished = distill(toy_distill(), tmp_path / "images")
    assert names == [SHARDS[0], SHARDS[1], SHARDS[1], SHARDS[2]]
    assert finished.manifest["files"] == toy.images.manifest["files"]


def test_errors_are_told(tmp_path):
    teacher = EmojiTeacherConfig(errors=ErrorKnob(wrong_class=1))
    made = distill(toy_distill(3, teacher=teacher), tmp_path / "images")
    shards = ImageShards(made.path)
    assert [shards.meta(i)["errors"] for i in range(3)] == [["wrong_class"]] * 3


def test_prompts_from_a_file_and_from_an_artifact(tmp_path):
    prompts = [Prompt(prompt="a photo of a dog", tag="single_object"), Prompt(prompt="two cats", seed=7)]
    write_prompts(tmp_path / "mine.jsonl", prompts)
    made = distill(toy_distill(images_per_prompt=2), tmp_path / "from-file", [tmp_path / "mine.jsonl"])
    assert made.config["prompts"] is None
    assert made.config["plain_inputs"][0]["name"] == "mine.jsonl"
    shards = ImageShards(made.path)
    metas = [shards.meta(i) for i in range(len(shards))]
    assert [meta["prompt"] for meta in metas] == ["a photo of a dog"] * 2 + ["two cats"] * 2
    assert [meta["seed"] for meta in metas[2:]] == [7, 8]
    assert metas[0]["seed"] != metas[1]["seed"]
    with begin_artifact(tmp_path / "prompts", "prompts", {}, []) as workspace:
        write_prompts(workspace.path / "prompts.jsonl", prompts)
        parent = workspace.commit({"prompts": 2})
    made = distill(toy_distill(images_per_prompt=2), tmp_path / "from-artifact", [parent.path])
    assert made.parents == [{"name": "prompts", "kind": "prompts", "digest": parent.digest}]
    assert made.manifest["files"] == open_artifact(tmp_path / "from-file").manifest["files"]


def test_a_student_draws_the_same_in_any_batch(toy, tmp_path):
    config = toy_distill(3, teacher=toy_student(), images_per_prompt=2)
    made = [
        distill(
            toy_distill(3, **{**vars_of(config), "batch_size": size}),
            tmp_path / str(size),
            start=toy.student.path,
        )
        for size in (1, 4)
    ]
    assert made[0].manifest["generator"] == f"student-{toy.student.digest[:12]}"
    assert made[0].parents[-1]["digest"] == toy.student.digest
    one, four = (ImageShards(each.path) for each in made)
    difference = [np.abs(one[i].image.astype(int) - four[i].image.astype(int)).max() for i in range(6)]
    assert max(difference) <= 1
    assert np.abs(one[0].image.astype(int) - one[1].image.astype(int)).max() > 10, "seeds differ"
    assert "objects" not in one.meta(0)


def vars_of(config):
    return {"teacher": config.teacher, "images_per_prompt": config.images_per_prompt}


def test_tasks_can_be_chosen():
    found = nano_prompts(NanoPrompts(num=5, tags=("counting",)))
    assert [prompt.tag for prompt in found] == ["counting"] * 5
    with pytest.raises(UserError, match="tags \\['count'\\], allowed: .*counting"):
        nano_prompts(NanoPrompts(num=5, tags=("count",)))


def test_what_is_refused(toy, tmp_path):
    with pytest.raises(UserError, match="for a teacher, allowed: only where a student draws"):
        distill(toy_distill(), tmp_path / "x", start=toy.student.path)
    with pytest.raises(UserError, match="prompts: got none"):
        distill(toy_distill(prompts=None), tmp_path / "x")
    with pytest.raises(ArtifactError, match="got kind 'images', allowed: prompts"):
        distill(toy_distill(), tmp_path / "x", [toy.images.path])
    (tmp_path / "edit.jsonl").write_text(json.dumps({"prompt": "a dog", "mask": "m.png"}))
    with pytest.raises(UserError, match="source or mask"):
        distill(toy_distill(), tmp_path / "x", [tmp_path / "edit.jsonl"])
    with pytest.raises(UserError, match="holds detector, allowed: a checkpoint with transformer"):
        distill(toy_distill(teacher=toy_student()), tmp_path / "x", start=toy.detector.path)
    assert not isinstance(begin_artifact(tmp_path / "x", "images", {}, []), Artifact), "nothing was begun"


@pytest.mark.parametrize("name", ["images_per_prompt", "height", "width", "shard_size", "batch_size"])
def test_numbers_from_1_are_allowed(tmp_path, name):
    for got in (0, -1):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')}: got {got}, allowed: .* from 1"):
            distill(replace(toy_distill(), **{name: got}), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_order_of_files_among_artifacts_counts(tmp_path):
    file, folder = tmp_path / "file.jsonl", tmp_path / "prompts"
    write_prompts(file, [Prompt(prompt="a red apple")])
    with begin_artifact(folder, "prompts", {}, []) as workspace:
        write_prompts(workspace.path / "prompts.jsonl", [Prompt(prompt="a blue cup")])
        workspace.commit({"prompts": 1})
    distill(toy_distill(), tmp_path / "out", [file, folder])
    with pytest.raises(ArtifactError, match="plain_inputs"):
        distill(toy_distill(), tmp_path / "out", [folder, file])


class _Server:
    """A teacher that refuses some prompts, as a server may today and not tomorrow."""

    def __init__(self, refuses):
        self.refuses = refuses

    def draw(self, prompts, seeds, height, width):
        for prompt in prompts:
            blank = np.zeros((height, width, 3), np.uint8)
            yield RefusedPrompt("refused") if prompt in self.refuses else blank


def test_refusals_are_counted_and_those_of_a_killed_run_are_forgotten(tmp_path, monkeypatch):
    config = replace(toy_distill(), teacher=EndpointTeacherConfig(base_url="http://localhost", model="m"))
    prompts = [Prompt(prompt=f"{each} cup") for each in "abc"]
    write_prompts(tmp_path / "p.jsonl", prompts)
    monkeypatch.setattr(TeacherPlace, "load", lambda self: _Server(["b cup"]))
    made = distill(config, tmp_path / "out", [tmp_path / "p.jsonl"])
    assert made.counts == {"images": 2, "prompts": 3, "refused": 1}
    lines = (made.path / "images-00000.refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["b cup"]
    # killed between the list of refusals and the shard
    write = stage.write_image_shard

    def killed(path, records, format):
        list(records)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "write_image_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(config, tmp_path / "again", [tmp_path / "p.jsonl"])
    monkeypatch.setattr(stage, "write_image_shard", write)
    monkeypatch.setattr(TeacherPlace, "load", lambda self: _Server([]))
    made = distill(config, tmp_path / "again", [tmp_path / "p.jsonl"])
    assert made.counts == {"images": 3, "prompts": 3} and len(ImageShards(made.path)) == 3
