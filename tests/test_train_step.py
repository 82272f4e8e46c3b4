"""The benchmark of a training step: it compares two ways to the same gradients, and says what it measured."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightgen.models.shape import TransformerConfig
from lightgen.recipes.model import nano, paper
from tests.models.naive import HEADS, TRUNKS, named

TERA = 1e12
NUMBERS = ("step_s", "images_per_s", "tflop_per_image", "tflop_per_s", "mfu", "speed_over_plain", "peak_mib")
SETTINGS = ("model", "px", "batch", "precision", "compiled", "checkpointing", "mask_share", "device", "torch")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[tuple[ModuleType, ModuleType]]:
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("plain_step"), importlib.import_module("train_step")
    sys.path.remove(folder)


@pytest.fixture
def plain_step(benchmarks):
    return benchmarks[0]


@pytest.fixture
def train_step(benchmarks):
    return benchmarks[1]


@pytest.fixture
def command(train_step, monkeypatch, capsys):
    def run(*arguments: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", ["train_step.py", *arguments])
        train_step.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def shape_of(trunk, head):
    return TransformerConfig(**trunk, **head, cross_layers=0 if trunk["fusion"] == "joint" else 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("trunk", "head"), [(t, HEADS[i % 4]) for i, t in enumerate(TRUNKS)], ids=named)
def test_both_steps_have_one_loss_and_the_same_gradients(plain_step, trunk, head, dtype):
    shape = plain_step.small(shape_of(trunk, head))
    assert max(plain_step.differences(shape, dtype)) <= {torch.float64: 1e-13, torch.float32: 1e-5}[dtype]


FAULTS = {
    "hidden": lambda case: {"hidden": torch.ones_like(case.hidden)},
    "noise": lambda case: {"noise": case.noise * 1.001},
    "time": lambda case: {"time": case.time.flip(0)},
    "text": lambda case: {"batch": {**case.batch, "masking": with_every_text(case.batch["masking"])}},
}


def with_every_text(masking):
    return replace(masking, kept=torch.arange(len(masking.order)))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_difference_is_seen(plain_step, monkeypatch, fault):
    plain = plain_step.plain_loss
    wrong = {"plain": lambda student, case: plain(student, replace(case, **FAULTS[fault](case)))}
    monkeypatch.setattr(plain_step, "LOSSES", plain_step.LOSSES | wrong)
    with pytest.raises(AssertionError, match="differ"):
        plain_step.check_equality(paper())


def test_the_variance_is_compared(plain_step, monkeypatch):
    nothing = torch.zeros(())
    monkeypatch.setattr(plain_step, "variational_bits", lambda *arguments: nothing)
    with pytest.raises(AssertionError, match="differ"):
        plain_step.check_equality(paper())


def test_what_both_are_given(plain_step):
    transformer = plain_step.build(plain_step.small(nano()), "cpu")
    case = plain_step.draw_case(transformer, 96, 40, 0.7)
    masking = case.batch["masking"]
    assert case.hidden.sum(dim=1).tolist() == [26] * 40 and masking.noise.shape == (4, 40, 26, 8)
    assert 30 < len(masking.kept) < 40 and not case.batch["text_mask"].all()
    row, place = 3, int(masking.order[3, 25])
    assert case.hidden[row, place] and not case.hidden[row, masking.order[3, 26]]
    assert torch.equal(case.noise[:, row, place], masking.noise[:, row, 25])
    assert torch.equal(case.time[:, row, place], masking.time[:, row, 25])


def test_the_plain_step_costs_what_the_released_one_does(plain_step, train_step):
    """As counted by hand for arXiv 2503.08619: 1.23 and 1.36 TFLOP an image."""
    with torch.device("meta"):
        transformer = plain_step.LightGenTransformer(**vars(paper()))
    case = plain_step.draw_case(transformer, 256, 1, 0.867, text_drop=0.0)
    exact, plain = (train_step.step_flops(paper(), name, case) / TERA for name in ("exact", "plain"))
    assert 1.18 < exact < 1.235 and 1.35 < plain < 1.36


def test_the_command(command):
    rows = command("--px", "32", "--batch", "2", "--rounds", "1", "--json", "--checkpointing")
    assert [row["step"] for row in rows] == ["exact", "plain"]
    for row in rows:
        assert set(NUMBERS) | set(SETTINGS) <= set(row)
        assert (row["px"], row["batch"], row["checkpointing"]) == (32, 2, True)
        assert min(row[name] for name in NUMBERS) > 0
        assert row["mask_share"] == pytest.approx(0.8006, abs=1e-4)
        assert row["images_per_s"] == pytest.approx(2 / row["step_s"], rel=0.02)
        assert row["tflop_per_s"] == pytest.approx(row["tflop_per_image"] * row["images_per_s"], rel=0.1)
        # the peak is rounded, and slow processors reach less than a thousandth of a TFLOP a second
        peak = row["tflop_per_s"] / row["mfu"]
        assert peak == pytest.approx(row["peak_tflop_per_s"], rel=0.1, abs=6e-4)
        assert row["speed_least"] <= row["speed_over_plain"] <= row["speed_greatest"]
    exact, plain = rows
    assert exact["tflop_per_image"] < plain["tflop_per_image"]
    assert exact["speed_over_plain"] == pytest.approx(plain["step_s"] / exact["step_s"], rel=0.02)


def test_nothing_is_measured_where_the_steps_differ(plain_step, command, monkeypatch):
    monkeypatch.setitem(plain_step.LOSSES, "plain", lambda *given: 1.001 * plain_step.exact_loss(*given))
    with pytest.raises(AssertionError, match="differ"):
        command("--px", "32", "--batch", "2", "--rounds", "1", "--json")


def test_the_largest_batch_is_found(plain_step, train_step, monkeypatch):
    setting = train_step.Setting(model="nano", px=32, precision="fp32", mask_share=0.8, checkpointing=True)
    trainer = train_step.Trainer(plain_step.small(nano()), setting, "cpu")
    assert trainer.student.transformer.gradient_checkpointing
    whole = trainer.take

    def take(name, case):
        if name == "plain" and len(case.hidden) > 5:
            raise torch.OutOfMemoryError
        return whole(name, case)

    monkeypatch.setattr(trainer, "take", take)
    assert train_step.batch_of("max", trainer) == 4
    assert train_step.largest_batch(lambda size: size < 1) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without an accelerator")
@pytest.mark.parametrize("arguments", [["--sweep"], ["--batch", "max"]])
def test_what_needs_a_gpu_is_refused_in_one_line(command, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--px", "100"], ["--batch", "0"], ["--rounds", "0"]])
def test_numbers_out_of_range_are_refused(command, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    assert "allowed" in capsys.readouterr().err
