"""Records: means over the steps of an interval, what was skipped, and who else is told of them."""

import math
import sys
import time
import types

import pytest
import torch

from lightgen.core.errors import UserError
from lightgen.core.metrics import read_metrics
from lightgen.training import watch as watch_module
from lightgen.training.config import Tracker
from lightgen.training.learning import Outcome
from lightgen.training.state import save_state
from lightgen.training.watch import Watch, open_tracker
from tests.training.toy import Killed, Net, Settings, by_clock, go, killed_at, numbers, objective, spoiled


def watch_of(folder, step=0, notes=None, work=None, track: Tracker = "none"):
    return Watch(folder, step, notes or {}, 6, work, track)


def outcome_of(loss, norm=1.0, taken=True, **pairs):
    return Outcome({"loss": (6 * loss, 6.0), **pairs}, norm, taken, ())


def test_a_record_holds_means_over_its_interval(tmp_path):
    watch = watch_of(tmp_path)
    watch.note(outcome_of(1.0, 2.0, early=(3.0, 2.0), late=(5.0, 1.0)), 0.5)
    watch.note(outcome_of(4.0, 6.0, early=(9.0, 1.0), late=(0.0, 0.0)), 0.25)
    watch.write(2, 0.125, {})
    watch.note(outcome_of(7.0, 1.0, late=(0.0, 0.0)), 0.0)
    watch.write(3, 0.25, {"held_out_loss": 9.0})
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["step"] == 2 and first["loss"] == 2.5 and first["grad_norm"] == 4.0 and first["lr"] == 0.125
    assert first["early"] == 4.0 and first["late"] == 5.0, "by their own counts"
    assert first["wait_s"] == 0.75 and first["skipped"] == 0 and first["memory_gb"] > 0
    assert second["loss"] == 7.0 and second["held_out_loss"] == 9.0 and second["wait_s"] == 0
    assert "late" not in second and "early" not in second, "what had no samples has no mean"
    assert "mfu" not in first and first["interval_s"] > 0


def test_steps_that_were_not_taken_are_counted_and_nothing_else(tmp_path):
    watch = watch_of(tmp_path)
    for loss, taken in ((1.0, True), (math.nan, False), (3.0, True), (math.inf, False)):
        watch.note(outcome_of(loss, math.nan if not taken else 1.0, taken), 0.0)
    watch.write(4, 0.1, {})
    watch.note(outcome_of(math.nan, math.nan, taken=False), 0.0)
    watch.write(5, 0.1, {})
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["loss"] == 2.0 and first["grad_norm"] == 1.0 and first["skipped"] == 2
    assert second["loss"] is None and second["grad_norm"] is None and second["skipped"] == 3, (
        "in the whole run"
    )


def test_a_run_counts_its_skipped_steps_across_an_interruption(tmp_path):
    loss, settings = spoiled({1, 4, 5}), Settings(log_every=4, save_every=3)
    with pytest.raises(Killed):
        go(settings, Net(), killed_at(7, loss), tmp_path / "killed")
    for folder in ("killed", "whole"):
        go(settings, Net(), loss, tmp_path / folder)
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    assert [record["skipped"] for record in numbers(tmp_path / "whole")] == [1, 3]


@pytest.mark.parametrize("death", [2, 4, 7])
def test_records_of_a_resumed_run_are_those_of_an_unbroken_one(tmp_path, monkeypatch, death):
    """Also where the state is written while the next steps are taken, and in the midst of an interval."""

    def save_late(*arguments, **settings):
        time.sleep(0.2)
        return save_state(*arguments, **settings)

    settings = Settings(log_every=5, save_every=2, num_steps=9)
    go(settings, Net(), objective, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("lightgen.training.saver.save_state", save_late)
        with pytest.raises(Killed):
            go(settings, Net(), killed_at(death), tmp_path / "killed")
    go(settings, Net(), objective, tmp_path / "killed")
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    assert [record["step"] for record in numbers(tmp_path / "whole")] == [5, 9]
    assert {"loss", "grad_norm", "largest", "over", "lr", "skipped"} <= numbers(tmp_path / "whole")[0].keys()


def test_what_the_clock_says_is_named_so(tmp_path):
    go(Settings(num_steps=3), Net(), objective, tmp_path)
    record = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert {name for name in record if by_clock(name)} == {
        *("images_per_s", "memory_gb", "wait_s", "save_s", "interval_s", "elapsed_s")
    }


def test_speed_counts_what_training_took_and_utilisation_all_devices(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watch_module.time, "monotonic", lambda: now[0])
    watch = watch_of(tmp_path, notes={"elapsed_s": 50.0}, work=(30.0, 120.0))
    watch.note(outcome_of(1.0), 0.0)
    watch.note(outcome_of(1.0), 0.0)
    watch.saved(0.5)
    now[0] = 106.0
    watch.pause(2.0)  # spent on a held-out loss
    watch.write(2, 0.1, {})
    record = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert record["interval_s"] == 4.0 and record["images_per_s"] == 2 * 6 / 4.0
    assert record["mfu"] == 2 * 30.0 / 4.0 / 120.0
    assert record["elapsed_s"] == 56.0 and record["save_s"] == 0.5


def test_later_records_of_an_interrupted_run_go(tmp_path):
    for step in (1, 2, 3):
        watch = watch_of(tmp_path, step - 1)
        watch.note(outcome_of(float(step)), 0.0)
        watch.write(step, 0.1, {})
    watch_of(tmp_path, 2)
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_the_rate_on_record_is_that_of_the_step(tmp_path):
    go(Settings(), Net(), objective, tmp_path)
    factors = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 2 / 3, 1 / 3]
    assert [r["lr"] for r in numbers(tmp_path)] == pytest.approx([1e-2 * factor for factor in factors])


@pytest.mark.parametrize(
    ("track", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio"), ("wandb", "wandb")],
)
def test_a_tracker_that_is_not_installed_is_named_in_one_line(tmp_path, monkeypatch, track, module):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    with pytest.raises(UserError) as caught:
        go(Settings(track=track), Net(), objective, tmp_path)
    told = f"track: got {track}, which is not installed; allowed: pip install {track}, or none"
    assert str(caught.value) == told


class Writer:
    """Stands in for TensorBoard's writer."""

    made: list["Writer"] = []  # noqa: RUF012  (a stand-in)

    def __init__(self, folder):
        self.folder, self.values, self.flushed = folder, {}, 0
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.values[name, step] = value

    def flush(self):
        self.flushed += 1


def test_tensorboard_gets_the_records(tmp_path, monkeypatch):
    Writer.made.clear()
    fake = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setattr(fake, "SummaryWriter", Writer, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    go(Settings(track="tensorboard", log_every=4), Net(), spoiled(range(4)), tmp_path)
    (writer,) = Writer.made
    assert writer.folder == str(tmp_path / "tensorboard") and writer.flushed == 2
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[0]["loss"] is None
    assert writer.values == {
        (name, record["step"]): value
        for record in records
        for name, value in record.items()
        if name != "step" and value is not None
    }


@pytest.mark.parametrize("track", ["trackio", "wandb"])
def test_trackio_and_wandb_get_the_records(tmp_path, monkeypatch, track):
    began, told = [], []
    fake = types.ModuleType(track)
    run = types.SimpleNamespace(log=lambda record, step: told.append((step, record)))
    monkeypatch.setattr(fake, "init", lambda **named: began.append(named) or run, raising=False)
    monkeypatch.setitem(sys.modules, track, fake)
    open_tracker(track, tmp_path / ".student.partial" / "train_state")(3, {"loss": 0.5})
    assert began == [{"project": "lightgen", "name": "student"}]
    assert told == [(3, {"loss": 0.5})]


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="wandb, which is not installed"):
        watch_of(tmp_path, track="wandb")  # on every rank, or the others would wait for the first
    watch = watch_of(tmp_path)
    watch.note(outcome_of(1.0), 0.0)
    watch.write(1, 0.1, {})
    assert list(tmp_path.iterdir()) == []
    assert watch.notes()["sums"] == {}


def test_the_line_tells_what_matters(tmp_path, capsys):
    watch = watch_of(tmp_path, work=(1.0, 1.0))
    watch.note(outcome_of(0.123456), 0.0)
    watch.note(outcome_of(math.nan, taken=False), 0.0)
    watch.write(1234, 1e-3, {"held_out_loss": torch.tensor(0.5).item()})
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    for part in ("step 1,234", "loss 0.1235", "held_out_loss 0.5", "lr 1.00e-03", "MFU", "1 steps skipped"):
        assert part in told[0], part
