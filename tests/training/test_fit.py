"""The loop: exact resume, steps that are refused, and sums that do not depend on how a batch is cut."""

import math

import pytest
import torch
from torch import nn

from lightgen.core.draws import torch_draws
from lightgen.core.errors import UserError
from lightgen.core.metrics import read_metrics
from lightgen.objectives.masked import MaskedConfig, MaskedObjective
from lightgen.training.fit import FitConfig, fit
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig
from lightgen.training.state import load_newest_state

NUM_STEPS = 8


class Killed(BaseException):
    """The end of a process, as far as the loop can see."""


class Net(nn.Module):
    """A small regression with a matrix in a block, for Muon, and a buffer that moves."""

    def __init__(self):
        super().__init__()
        self.inlet, self.blocks = nn.Linear(5, 6), nn.ModuleList([nn.Linear(6, 6)])
        self.norm, self.outlet = nn.BatchNorm2d(6), nn.Linear(6, 2)
        for index, parameter in enumerate(self.parameters()):
            with torch.no_grad():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=torch_draws(0, "test", index)))

    def forward(self, x):
        for layer in (self.inlet, self.blocks[0]):
            x = torch.tanh(layer(x.to(layer.weight.dtype)))
        return self.outlet(self.mixed(x.float()).to(self.outlet.weight.dtype))

    def mixed(self, hidden):
        return self.norm(hidden[..., None, None]).flatten(1)


class Plain(Net):
    """Without batch statistics, which depend on how a batch is cut."""

    def mixed(self, hidden):
        return hidden


def batches(step):
    random = torch_draws(1, "test-batch", step)
    x = torch.randn(6, 5, generator=random)
    return {"x": x, "y": x[:, :2].sin(), "names": [f"{step}-{i}" for i in range(6)]}


def objective(learner, batch, step):
    assert len(batch["names"]) == len(batch["x"])
    error = learner(batch["x"]).float() - batch["y"]
    return error.square().mean(), {"largest": error.abs().max().item()}


def config_of(name="adamw", **settings):
    defaults = {
        "num_steps": NUM_STEPS,
        "global_batch_size": 6,
        "precision": "fp32",
        "save_every": 3,
        "log_every": 1,
    }
    schedule = ScheduleConfig(kind="wsd", warmup_steps=2, decay_steps=3)
    optimizer = OptimizerConfig(name=name, lr=1e-2, muon_lr=2e-2)
    return FitConfig(
        **{**defaults, "schedule": schedule, "optimizer": optimizer, "ema_decay": 0.8, **settings}
    )


def spoiled(at, how=float("nan"), sample=0):
    """The objective, with one sample's error multiplied by nan or inf in the steps `at`."""

    def loss(learner, batch, step):
        error = (learner(batch["x"]).float() - batch["y"]).square().mean(dim=1)
        names = batch["names"]
        if step in at and f"{step}-{sample}" in names:
            error = torch.stack(
                [e * how if names[i] == f"{step}-{sample}" else e for i, e in enumerate(error)]
            )
        return error.mean(), {}

    return loss


def killed_at(step_of_death, inner=objective):
    def loss(learner, batch, step):
        if step == step_of_death:
            raise Killed
        return inner(learner, batch, step)

    return loss


def numbers(folder):
    """The metrics without what the clock says."""
    records = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in record.items() if not name.endswith("_s")} for record in records]


def tensors_of(learner):
    return dict(learner.state_dict())


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


@pytest.fixture
def whole(tmp_path):
    """An uninterrupted run: (learner, folder)."""

    def run(config, loss=objective):
        learner, folder = Net(), tmp_path / "whole"
        assert fit(config, learner, loss, batches, folder) == config.num_steps
        return learner, folder

    return run


@pytest.mark.parametrize(
    ("name", "precision"), [("adamw", "fp32"), ("muon", "fp32"), ("adamw", "bf16"), ("muon", "bf16")]
)
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_killed_run_goes_on_to_the_bit(whole, tmp_path, name, precision, micro_batch_size):
    config = config_of(name, precision=precision, micro_batch_size=micro_batch_size)
    expected, expected_folder = whole(config)
    folder = tmp_path / "killed"
    for death in (0, 2, 4, 7):  # before any state, before and after the first, and after the second
        with pytest.raises(Killed):
            fit(config, Net(), killed_at(death), batches, folder)
    learner = Net()
    assert fit(config, learner, objective, batches, folder) == NUM_STEPS
    assert_same(tensors_of(learner), tensors_of(expected))
    assert numbers(folder) == numbers(expected_folder)
    assert [record["step"] for record in numbers(folder)] == list(range(1, NUM_STEPS + 1))
    states = [load_newest_state(each / "state") for each in (folder, expected_folder)]
    assert states[0] is not None and states[1] is not None and states[0][0] == states[1][0] == NUM_STEPS
    assert_same(states[0][1], states[1][1])


def test_a_run_cut_by_the_clock_after_every_step_goes_on_to_the_bit(whole, tmp_path):
    config = config_of("muon")
    expected, expected_folder = whole(config)
    learner, folder = nn.Module(), tmp_path / "cut"
    for step in range(1, NUM_STEPS + 1):
        learner = Net()
        assert fit(config_of("muon", max_seconds=0.0), learner, objective, batches, folder) == step
    assert_same(tensors_of(learner), tensors_of(expected))
    assert numbers(folder) == numbers(expected_folder)


def test_a_finished_run_takes_no_further_step(whole):
    config = config_of()
    expected, folder = whole(config)

    def never(learner, batch, step):
        raise AssertionError(step)

    again = Net()
    assert fit(config, again, never, batches, folder) == NUM_STEPS
    assert_same(tensors_of(again), tensors_of(expected))
    assert len(numbers(folder)) == NUM_STEPS


def test_a_damaged_newest_state_costs_only_the_steps_since_the_one_before(whole, tmp_path):
    config = config_of()
    expected, expected_folder = whole(config)
    folder, steps = tmp_path / "killed", []
    with pytest.raises(Killed):
        fit(config, Net(), killed_at(7), batches, folder)
    states = sorted((folder / "state").iterdir())
    assert [path.name for path in states] == ["step-00000003", "step-00000006"]

    def damage(path):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    damage(states[1] / "state.safetensors")

    def watched(learner, batch, step):
        steps.append(step)
        return objective(learner, batch, step)

    learner = Net()
    fit(config, learner, watched, batches, folder)
    assert steps == [3, 4, 5, 6, 7]
    assert_same(tensors_of(learner), tensors_of(expected))
    assert numbers(folder) == numbers(expected_folder)
    for path in (folder / "state").iterdir():
        damage(path / "state.safetensors")
    with pytest.raises(UserError, match="2 saved states are damaged"):
        fit(config, Net(), objective, batches, folder)


@pytest.mark.parametrize("how", [math.nan, math.inf])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bad_step_moves_nothing(tmp_path, how, micro_batch_size, precision):
    bad = NUM_STEPS - 1  # the last, so that the states around it are the two that are kept
    config = config_of("muon", save_every=1, micro_batch_size=micro_batch_size, precision=precision)
    learner = Net()
    assert fit(config, learner, spoiled({bad}, how, sample=3), batches, tmp_path) == NUM_STEPS
    newest = load_newest_state(tmp_path / "state")
    (tmp_path / "state" / f"step-{NUM_STEPS:08d}").rename(tmp_path / "newest")
    before = load_newest_state(tmp_path / "state")
    assert newest is not None and before is not None and newest[0] == before[0] + 1 == NUM_STEPS
    for name, tensor in newest[1].items():
        if not name.startswith("buffers/"):  # running statistics are of the forward pass
            assert torch.equal(tensor, before[1][name]), name
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(learner).values())


def test_training_goes_on_after_a_bad_step(tmp_path, whole):
    learner, folder = whole(config_of(), spoiled({2, 3}))
    losses = [record["loss"] for record in numbers(folder)]
    assert losses[2] is None and losses[3] is None  # what is not finite is written as null
    assert all(loss is not None and math.isfinite(loss) for loss in [*losses[:2], *losses[4:]])
    untouched = Net()
    fit(config_of(), untouched, objective, batches, tmp_path / "clean")
    assert not torch.equal(learner.outlet.weight, untouched.outlet.weight)


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    learner = Net()
    with pytest.raises(UserError) as caught:
        fit(config_of(max_bad_steps=3), learner, spoiled({2, 3, 4}), batches, tmp_path)
    assert "3 steps in a row" in str(caught.value) and "\n" not in str(caught.value)
    assert [record["step"] for record in numbers(tmp_path)] == [1, 2, 3, 4]
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(learner).values())


def test_a_run_that_is_bad_from_the_start_ends_with_the_weights_it_had(tmp_path):
    learner = Net()
    with pytest.raises(UserError, match="2 steps in a row"):
        fit(config_of(max_bad_steps=2), learner, spoiled(range(9)), batches, tmp_path)
    for (name, parameter), start in zip(learner.named_parameters(), Net().parameters(), strict=True):
        assert torch.equal(parameter, start), name


def test_scattered_bad_steps_do_not_add_up(tmp_path):
    config = config_of(max_bad_steps=2)
    assert fit(config, Net(), spoiled({1, 3, 5}), batches, tmp_path) == NUM_STEPS


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_micro_batches_add_up_to_the_batch(tmp_path, name):
    runs = []
    for size in (None, 1, 4, 6, 100):
        learner, folder = Plain(), tmp_path / str(size)
        fit(config_of(name, micro_batch_size=size, max_grad_norm=0.05), learner, objective, batches, folder)
        runs.append((tensors_of(learner), [(r["loss"], r["grad_norm"]) for r in numbers(folder)]))
    for tensors, curve in runs[1:]:
        assert curve == [pytest.approx(each, rel=1e-4) for each in runs[0][1]]
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, runs[0][0][key], rtol=1e-3, atol=1e-5)
    assert any(norm > 0.05 for _, norm in runs[0][1])  # the norm on record is that before clipping


def test_the_learner_ends_with_the_average_of_its_weights(tmp_path):
    """One parameter of slope 1: the weight falls by lr each step, the average by its recursion."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    def slope(learner, batch, step):
        return learner.weight.float().sum(), {}

    schedule = ScheduleConfig(kind="constant", warmup_steps=0)
    settings = {"optimizer": OptimizerConfig(lr=1e-4, weight_decay=0.0), "schedule": schedule}
    for precision in ("fp32", "bf16"):
        for decay in (0.0, 0.8):
            learner, weight, average = One(), 1.0, 1.0
            config = config_of(num_steps=10, ema_decay=decay, precision=precision, **settings)
            fit(config, learner, slope, batches, tmp_path / f"{precision}-{decay}")
            for step in range(10):
                weight -= 1e-4  # far below what bf16 can tell from 1: the weights themselves are fp32
                kept = min(decay, (1 + step) / (10 + step))
                average = kept * average + (1 - kept) * weight
            assert learner.weight.dtype == torch.float32
            assert abs(learner.weight.item() - average) < 2e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_lowers_the_loss(tmp_path, precision):
    config = config_of("muon", num_steps=40, precision=precision, max_grad_norm=5.0)
    fit(config, Net(), objective, batches, tmp_path)
    losses = [record["loss"] for record in numbers(tmp_path)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("shape", [{"fusion": "late", "prediction": "ddpm", "layers": "plain"}, {}], ids=str)
def test_a_student_with_dropout_that_was_killed_goes_on_to_the_bit(make_student, make_batch, tmp_path, shape):
    masked = MaskedObjective(MaskedConfig(draws_per_token=2, text_drop=0.5))
    config, ended = config_of("muon", num_steps=5, micro_batch_size=4), []

    def batches(step):
        return make_batch([6 * step + i for i in range(6)])

    for folder, deaths in (("whole", ()), ("killed", (2, 4))):
        for death in deaths:
            with pytest.raises(Killed):
                fit(
                    config,
                    make_student(dropout=0.2, **shape),
                    killed_at(death, masked),
                    batches,
                    tmp_path / folder,
                )
        student = make_student(dropout=0.2, **shape)
        torch.manual_seed(len(deaths))  # which no draw may depend on
        fit(config, student, masked, batches, tmp_path / folder)
        ended.append((tensors_of(student), numbers(tmp_path / folder)))
    assert_same(ended[0][0], ended[1][0])
    assert ended[0][1] == ended[1][1] and len(ended[0][1]) == 5


PAPER = {"fusion": "late", "prediction": "ddpm", "layers": "plain", "positions": "learned", "dropout": 0.1}


@pytest.mark.parametrize(("shape", "train_text_encoder"), [({}, True), ({}, False), (PAPER, True)], ids=str)
def test_a_student_learns_alike_in_both_precisions(
    make_student, make_batch, tmp_path, shape, train_text_encoder
):
    curves = {}
    for precision in ("fp32", "bf16"):
        student, config = (
            make_student(0, train_text_encoder, **shape),
            config_of("muon", num_steps=6, precision=precision),
        )
        words = {name: tensor.clone() for name, tensor in student.text_encoder.state_dict().items()}
        batch = make_batch(list(range(6)))
        fit(config, student, MaskedObjective(MaskedConfig()), lambda step, b=batch: b, tmp_path / precision)
        curves[precision] = [record["loss"] for record in numbers(tmp_path / precision)]
        moved = [not torch.equal(t, words[n]) for n, t in student.text_encoder.state_dict().items()]
        assert all(moved) if train_text_encoder else not any(moved)
    assert curves["bf16"] == pytest.approx(curves["fp32"], rel=0.03)
    assert curves["bf16"] != curves["fp32"]


def test_frozen_parameters_stay_and_do_not_decay(tmp_path):
    for precision in ("fp32", "bf16"):
        learner = Net()
        learner.inlet.requires_grad_(False)
        optimizer = OptimizerConfig(name="muon", weight_decay=0.5)
        fit(
            config_of(optimizer=optimizer, precision=precision),
            learner,
            objective,
            batches,
            tmp_path / precision,
        )
        assert torch.equal(learner.inlet.weight, Net().inlet.weight)
        assert not torch.equal(learner.outlet.weight, Net().outlet.weight)


def test_batches_are_asked_for_by_step_alone(tmp_path):
    asked = []

    def noted(step):
        asked.append(step)
        return batches(step)

    config = config_of()
    with pytest.raises(Killed):
        fit(config, Net(), killed_at(5), noted, tmp_path)
    assert set(asked) <= set(range(7)) and asked[:5] == [0, 1, 2, 3, 4]
    asked.clear()
    fit(config, Net(), objective, noted, tmp_path)
    assert asked[:5] == [3, 4, 5, 6, 7] and set(asked) == {3, 4, 5, 6, 7}


def test_an_error_while_reading_comes_through(tmp_path):
    def broken(step):
        if step == 4:
            raise UserError("shard 7 is damaged")
        return batches(step)

    with pytest.raises(UserError, match="shard 7"):
        fit(config_of(), Net(), objective, broken, tmp_path)
    learner = Net()
    assert fit(config_of(), learner, objective, batches, tmp_path) == NUM_STEPS


def test_metrics_come_at_the_asked_steps_and_at_the_end(tmp_path):
    fit(config_of(num_steps=7, log_every=3), Net(), objective, batches, tmp_path)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [3, 6, 7]
    for record in records:
        assert record["loss"] > 0 and record["grad_norm"] > 0 and record["largest"] > 0
        assert record["elapsed_s"] >= 0 and record["wait_s"] >= 0
