"""The loop: exact resume, steps that are refused, and sums that do not depend on how a batch is cut."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from lightgen.core.errors import UserError
from lightgen.core.interrupts import Terminated
from lightgen.core.metrics import read_metrics
from lightgen.objectives.masked import MaskedConfig, MaskedObjective
from lightgen.training.fit import Training, fit
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig
from tests.training.toy import (
    NUM_STEPS,
    SOURCE,
    Killed,
    Net,
    Plain,
    Settings,
    ToySource,
    assert_same,
    go,
    killed_at,
    numbers,
    objective,
    saved,
    spoiled,
)


def tensors_of(learner):
    return dict(learner.state_dict())


@pytest.fixture
def whole(tmp_path):
    """An uninterrupted run: (learner, folder)."""

    def run(settings, loss=objective):
        learner, folder = Net(), tmp_path / "whole"
        assert go(settings, learner, loss, folder) == settings.fit.num_steps
        return learner, folder

    return run


@pytest.mark.parametrize(
    ("name", "precision"), [("adamw", "fp32"), ("muon", "fp32"), ("adamw", "bf16"), ("muon", "bf16")]
)
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_killed_run_goes_on_to_the_bit(whole, tmp_path, name, precision, micro_batch_size):
    settings = Settings(name, precision=precision, micro_batch_size=micro_batch_size)
    expected, expected_folder = whole(settings)
    folder = tmp_path / "killed"
    for death in (0, 2, 4, 7):  # before any state, before and after the first, and after the second
        with pytest.raises(Killed):
            go(settings, Net(), killed_at(death), folder)
    learner = Net()
    assert go(settings, learner, objective, folder) == NUM_STEPS
    assert_same(tensors_of(learner), tensors_of(expected))
    assert numbers(folder) == numbers(expected_folder)
    assert [record["step"] for record in numbers(folder)] == list(range(1, NUM_STEPS + 1))
    states = [saved(each / "state") for each in (folder, expected_folder)]
    assert states[0][0] == states[1][0] == NUM_STEPS
    assert {name.split("/")[0] for name in states[0][1]} == {"weights", "buffers", "ema", "optimizer"}
    assert_same(states[0][1], states[1][1])


def test_a_run_cut_by_the_clock_after_every_step_goes_on_to_the_bit(whole, tmp_path):
    expected, expected_folder = whole(Settings("muon"))
    learner, folder = nn.Module(), tmp_path / "cut"
    for step in range(1, NUM_STEPS + 1):
        learner = Net()
        assert go(Settings("muon", max_seconds=0.0), learner, objective, folder) == step
    assert_same(tensors_of(learner), tensors_of(expected))
    assert numbers(folder) == numbers(expected_folder)


def test_a_finished_run_takes_no_further_step(whole):
    settings = Settings()
    expected, folder = whole(settings)

    def never(learner, batch, step):
        raise AssertionError(step)

    again = Net()
    assert go(settings, again, never, folder) == NUM_STEPS
    assert_same(tensors_of(again), tensors_of(expected))
    assert len(numbers(folder)) == NUM_STEPS


def test_a_damaged_newest_state_costs_only_the_steps_since_the_one_before(whole, tmp_path):
    settings = Settings()
    expected, expected_folder = whole(settings)
    folder, steps = tmp_path / "killed", []
    with pytest.raises(Killed):
        go(settings, Net(), killed_at(7), folder)
    states = sorted((folder / "state").iterdir())
    assert [path.name for path in states] == ["step-00000003", "step-00000006"]

    def damage(path):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    damage(states[1] / "rank-00000.safetensors")

    def watched(learner, batch, step):
        steps.append(step)
        return objective(learner, batch, step)

    learner = Net()
    go(settings, learner, watched, folder)
    assert steps == [3, 4, 5, 6, 7]
    assert_same(tensors_of(learner), tensors_of(expected))
    assert numbers(folder) == numbers(expected_folder)
    for path in (folder / "state").iterdir():
        damage(path / "rank-00000.safetensors")
    with pytest.raises(UserError, match="2 saved states are damaged"):
        go(settings, Net(), objective, folder)


@pytest.mark.parametrize("how", [math.nan, math.inf])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bad_step_moves_nothing(tmp_path, how, micro_batch_size, precision):
    bad = NUM_STEPS - 1  # the last, so that the states around it are the two that are kept
    settings = Settings("muon", save_every=1, micro_batch_size=micro_batch_size, precision=precision)
    learner = Net()
    assert go(settings, learner, spoiled({bad}, how, sample=3), tmp_path) == NUM_STEPS
    newest = saved(tmp_path / "state")
    (tmp_path / "state" / f"step-{NUM_STEPS:08d}").rename(tmp_path / "newest")
    before = saved(tmp_path / "state")
    assert newest[0] == before[0] + 1 == NUM_STEPS and newest[1].keys() == before[1].keys()
    for name, tensor in newest[1].items():
        if not name.startswith("buffers/"):  # running statistics are of the forward pass
            assert torch.equal(tensor, before[1][name]), name
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(learner).values())


def test_training_goes_on_after_a_bad_step(tmp_path, whole):
    learner, folder = whole(Settings(), spoiled({2, 3}))
    losses = [record["loss"] for record in numbers(folder)]
    assert losses[2] is None and losses[3] is None  # steps that were not taken have no numbers
    assert all(loss is not None and math.isfinite(loss) for loss in [*losses[:2], *losses[4:]])
    assert [record["skipped"] for record in numbers(folder)] == [0, 0, 1, 2, 2, 2, 2, 2]
    untouched = Net()
    go(Settings(), untouched, objective, tmp_path / "clean")
    assert not torch.equal(learner.outlet.weight, untouched.outlet.weight)


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    learner = Net()
    with pytest.raises(UserError) as caught:
        go(Settings(max_bad_steps=3), learner, spoiled({2, 3, 4}), tmp_path)
    assert "3 steps in a row" in str(caught.value) and "\n" not in str(caught.value)
    assert [record["step"] for record in numbers(tmp_path)] == [1, 2, 3, 4]
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(learner).values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bad_steps_in_a_row_are_counted_across_an_interruption(tmp_path, precision):
    loss = spoiled({2, 3, 4})
    with pytest.raises(Killed):
        go(Settings(max_bad_steps=3, precision=precision), Net(), killed_at(4, loss), tmp_path)
    assert saved(tmp_path / "state")[0] == 3
    with pytest.raises(UserError, match="3 steps in a row"):
        go(Settings(max_bad_steps=3, precision=precision), Net(), loss, tmp_path)


def test_a_run_that_is_bad_from_the_start_ends_with_the_weights_it_had(tmp_path):
    learner = Net()
    with pytest.raises(UserError, match="2 steps in a row"):
        go(Settings(max_bad_steps=2), learner, spoiled(range(9)), tmp_path)
    for (name, parameter), start in zip(learner.named_parameters(), Net().parameters(), strict=True):
        assert torch.equal(parameter, start), name


def test_scattered_bad_steps_do_not_add_up(tmp_path):
    assert go(Settings(max_bad_steps=2), Net(), spoiled({1, 3, 5}), tmp_path) == NUM_STEPS


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_micro_batches_add_up_to_the_batch(tmp_path, name):
    runs = []
    for size in (None, 1, 4, 6, 100):
        learner, folder = Plain(), tmp_path / str(size)
        go(Settings(name, micro_batch_size=size, max_grad_norm=0.05), learner, objective, folder)
        shown = ("loss", "grad_norm", "over")
        runs.append((tensors_of(learner), [tuple(r[n] for n in shown) for r in numbers(folder)]))
    for tensors, curve in runs[1:]:
        assert curve == [pytest.approx(each, rel=1e-4) for each in runs[0][1]]
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, runs[0][0][key], rtol=1e-3, atol=1e-5)
    assert any(norm > 0.05 for _, norm, _ in runs[0][1])  # the norm on record is that before clipping


def test_the_learner_ends_with_the_average_of_its_weights(tmp_path):
    """One parameter of slope 1: the weight falls by lr each step, the average by its recursion."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    def slope(learner, batch, step):
        return learner.weight.float().sum(), {}

    schedule = ScheduleConfig(kind="constant", warmup_steps=0)
    more = {"optimizer": OptimizerConfig(lr=1e-4, weight_decay=0.0), "schedule": schedule}
    for precision in ("fp32", "bf16"):
        for decay in (0.0, 0.8):
            learner, weight, average = One(), 1.0, 1.0
            settings = Settings(num_steps=10, ema_decay=decay, precision=precision, **more)
            go(settings, learner, slope, tmp_path / f"{precision}-{decay}")
            for step in range(10):
                weight -= 1e-4  # far below what bf16 can tell from 1: the weights themselves are fp32
                kept = min(decay, (1 + step) / (10 + step))
                average = kept * average + (1 - kept) * weight
            assert learner.weight.dtype == torch.float32
            assert abs(learner.weight.item() - average) < 2e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_lowers_the_loss(tmp_path, precision):
    settings = Settings("muon", num_steps=40, precision=precision, max_grad_norm=5.0)
    go(settings, Net(), objective, tmp_path)
    losses = [record["loss"] for record in numbers(tmp_path)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


class StudentSource(ToySource):
    """Samples for the tiny students; the same in every step if asked."""

    def __init__(self, make_batch, *, same=False):
        self.make_batch, self.same = make_batch, same

    def ids(self, step):
        return range(6) if self.same else super().ids(step)

    def load(self, ids, step):
        return self.make_batch(list(ids))


@pytest.mark.parametrize("shape", [{"fusion": "late", "prediction": "ddpm", "layers": "plain"}, {}], ids=str)
def test_a_student_with_dropout_that_was_killed_goes_on_to_the_bit(
    make_student, make_batch, drawing, tmp_path, shape
):
    masked = drawing(MaskedObjective, MaskedConfig(draws_per_token=2, text_drop=0.5))
    settings, ended = Settings("muon", num_steps=5, micro_batch_size=4), []

    for folder, deaths in (("whole", ()), ("killed", (2, 4))):
        source = StudentSource(make_batch)
        for death in deaths:
            student = make_student(dropout=0.2, **shape)
            with pytest.raises(Killed):
                go(settings, student, killed_at(death, masked), tmp_path / folder, source)
        student = make_student(dropout=0.2, **shape)
        torch.manual_seed(len(deaths))  # which no draw may depend on
        go(settings, student, masked, tmp_path / folder, source)
        ended.append((tensors_of(student), numbers(tmp_path / folder)))
    assert_same(ended[0][0], ended[1][0])
    assert ended[0][1] == ended[1][1] and len(ended[0][1]) == 5


PAPER = {"fusion": "late", "prediction": "ddpm", "layers": "plain", "positions": "learned", "dropout": 0.1}


@pytest.mark.parametrize(("shape", "train_text_encoder"), [({}, True), ({}, False), (PAPER, True)], ids=str)
def test_a_student_learns_alike_in_both_precisions(
    make_student, make_batch, drawing, tmp_path, shape, train_text_encoder
):
    curves, masked = {}, drawing(MaskedObjective, MaskedConfig())
    for precision in ("fp32", "bf16"):
        student = make_student(0, train_text_encoder, **shape)
        settings = Settings("muon", num_steps=6, precision=precision)
        frozen = torch.bfloat16 if precision == "bf16" and not train_text_encoder else torch.float32
        words = {
            name: tensor.to(frozen, copy=True) for name, tensor in student.text_encoder.state_dict().items()
        }
        go(settings, student, masked, tmp_path / precision, StudentSource(make_batch, same=True))
        curves[precision] = [record["loss"] for record in numbers(tmp_path / precision)]
        moved = [not torch.equal(t, words[n]) for n, t in student.text_encoder.state_dict().items()]
        assert all(moved) if train_text_encoder else not any(moved)
    assert curves["bf16"] == pytest.approx(curves["fp32"], rel=0.03)
    assert curves["bf16"] != curves["fp32"]


def test_frozen_parameters_stay_and_do_not_decay(tmp_path):
    """In bf16 they are rounded to what the learner computes in, and no more."""
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        learner = Net()
        learner.inlet.requires_grad_(False)
        optimizer = OptimizerConfig(name="muon", weight_decay=0.5)
        go(Settings(optimizer=optimizer, precision=precision), learner, objective, tmp_path / precision)
        assert torch.equal(learner.inlet.weight, Net().inlet.weight.to(dtype))
        assert not torch.equal(learner.outlet.weight, Net().outlet.weight)


class Noting(ToySource):
    """Remembers the steps of which it was asked for samples."""

    def __init__(self):
        self.asked = []

    def load(self, ids, step):
        assert list(ids) == list(self.ids(step))
        self.asked.append(step)
        return super().load(ids, step)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_asked_for_by_step_alone(tmp_path, workers):
    source, settings = Noting(), Settings(workers=workers)
    with pytest.raises(Killed):
        go(settings, Net(), killed_at(5), tmp_path, source)
    # while a batch is learned from, one more than there are workers is asked for
    ahead = workers + 1 if workers else 0
    assert set(range(6)) <= set(source.asked) <= set(range(6 + ahead))
    assert workers > 1 or source.asked[:5] == [0, 1, 2, 3, 4]
    source = Noting()
    go(settings, Net(), objective, tmp_path, source)
    assert sorted(source.asked) == [3, 4, 5, 6, 7]
    assert workers > 1 or source.asked == [3, 4, 5, 6, 7]


def test_an_error_while_reading_comes_through(tmp_path):
    class Broken(ToySource):
        def load(self, ids, step):
            if step == 4:
                raise UserError("shard 7 is damaged")
            return super().load(ids, step)

    with pytest.raises(UserError, match="shard 7"):
        go(Settings(), Net(), objective, tmp_path, Broken())
    assert go(Settings(), Net(), objective, tmp_path) == NUM_STEPS


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.parametrize("during", [0, 4, NUM_STEPS - 1])
def test_a_signal_ends_the_run_after_its_step_and_loses_nothing(whole, tmp_path, number, kind, during):
    settings = Settings("muon", log_every=5, save_every=100)
    expected, expected_folder = whole(settings)
    folder, steps = tmp_path / "cut", []

    def signalled(learner, batch, step):
        steps.append(step)
        if step == during:
            os.kill(os.getpid(), number)
        return objective(learner, batch, step)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught:
        go(settings, Net(), signalled, folder)
    assert type(caught.value) is kind and signal.getsignal(number) is before
    assert steps == list(range(len(steps))) and during < len(steps) <= during + 2
    assert saved(folder / "state")[0] == len(steps), "all that was learned is saved"
    learner = Net()
    assert go(settings, learner, objective, folder) == NUM_STEPS
    assert_same(tensors_of(learner), tensors_of(expected))
    assert numbers(folder) == numbers(expected_folder)


def test_the_states_that_were_asked_for_stay_and_are_told(tmp_path):
    told, settings = [], Settings(save_every=1, keep_last=1, keep_every=3)
    training = Training(learner=Net(), objective=objective, source=SOURCE)

    def on_saved(state, kept):
        assert state.names("ema"), "it can be read"
        told.append((state.step, sorted(kept)))

    fit(settings.fit, training, tmp_path, settings.run, on_saved=on_saved)
    assert told == [(s, sorted({s, *(k for k in (3, 6) if k <= s)})) for s in range(1, NUM_STEPS + 1)]
    names = [path.name for path in sorted((tmp_path / "state").iterdir())]
    assert names == ["step-00000003", "step-00000006", "step-00000008"]


def test_a_state_that_cannot_be_saved_ends_the_run(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lightgen.training.saver.save_state", full)
        with pytest.raises(OSError, match="No space left"):
            go(Settings(save_every=1), Net(), objective, tmp_path)
    assert numbers(tmp_path)[-1]["step"] == 2, "the loop learns of it at the next save"
    assert go(Settings(save_every=1), Net(), objective, tmp_path) == NUM_STEPS


def test_torn_states_of_a_killed_run_are_removed(tmp_path):
    torn = tmp_path / "state" / ".step-00000003.tmp"
    torn.mkdir(parents=True)
    (torn / "rank-00000.safetensors").write_bytes(b"half")
    assert go(Settings(), Net(), objective, tmp_path) == NUM_STEPS
    assert not list((tmp_path / "state").glob(".*"))


def test_metrics_come_at_the_asked_steps_and_at_the_end(tmp_path):
    go(Settings(num_steps=7, log_every=3), Net(), objective, tmp_path)
    records = read_metrics(Path(tmp_path / "metrics.jsonl"))
    assert [record["step"] for record in records] == [3, 6, 7]
    for record in records:
        assert record["loss"] > 0 and record["grad_norm"] > 0 and record["largest"] > 0
        assert record["elapsed_s"] >= 0 and record["wait_s"] >= 0
