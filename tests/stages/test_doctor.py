import re
from dataclasses import replace
from pathlib import Path

import pytest

from lightgen.cli.main import main
from lightgen.core.device import Hardware
from lightgen.core.errors import UserError
from lightgen.objectives.masked import MaskedConfig
from lightgen.stages import doctor as stage
from lightgen.stages.budget import text_flops
from lightgen.stages.doctor import budget, doctor, duration, flop, size
from lightgen.stages.plan import Plan
from lightgen.stages.tasks import PretrainTask
from lightgen.training.config import FitConfig, RunConfig
from tests.stages.test_budget import TINY

TINY_NANO = [
    *("--task.model.width", "32", "--task.model.num-heads", "2", "--task.model.encoder-layers", "1"),
    *("--task.model.decoder-layers", "1", "--task.model.head-width", "32", "--task.model.head-layers", "1"),
]


def test_what_is_there_and_what_is_missing(toy, monkeypatch):
    def no_weights(_):
        raise UserError("nano: no weights came with this copy")

    monkeypatch.setattr(stage, "open_checkpoint", no_weights)
    monkeypatch.setattr(stage, "open_detector", lambda _: toy.detector)
    found = {what: (finding, fine) for what, finding, fine in doctor()}
    assert list(found)[:4] == ["python", "libraries", "device", "threads"]
    assert re.fullmatch(r"[\d.,]+ [GT]iB of RAM free.*", found["memory"][0])
    assert re.fullmatch(r"[\d.,]+ [GT]iB free in this directory", found["disk"][0])
    assert "torch" in found["libraries"][0]
    assert found["weights nano"] == ("nano: no weights came with this copy", False)
    assert toy.detector.digest[:12] in found["weights nano-detector"][0]


def test_a_missing_font_is_a_finding(monkeypatch):
    monkeypatch.setenv("LIGHTGEN_EMOJI_FONT", "/no/such/file.ttf")
    what, finding, fine = next(each for each in doctor() if each[0] == "emoji font")
    assert not fine
    assert "/no/such/file.ttf" in finding


@pytest.mark.parametrize("what", ["weights nano", "weights nano-256", "weights nano-detector"])
def test_the_shipped_weights_are_whole(what):
    assert {name: fine for name, _, fine in doctor()}[what]


@pytest.fixture
def quick_counts(monkeypatch):
    """Passes that need not be counted: a MiB per image, 3 GFLOP, and 1 more with checkpointing."""
    monkeypatch.setattr(Plan, "_peak", lambda self, samples, checkpointing, hidden: samples * 2**20)
    monkeypatch.setattr(
        Plan, "_flops", lambda self, *, gradient_checkpointing: (3 + gradient_checkpointing) * 1e9
    )


def tiny_plan(memory, peak=1e12, ranks=2, **run):
    hardware = Hardware(name="test", is_gpu=True, is_here=True, memory=memory, peak=peak)
    task = PretrainTask(objective=MaskedConfig(mask_min=0.5, text_drop=0.0))
    fit = FitConfig(num_steps=1_000, global_batch_size=32)
    shape = replace(TINY, text_width=256, text_length=48, sample_size=8)
    return Plan(task, fit, RunConfig(keep_every=100, **run), shape, hardware, ranks)


def lines_of(plan, folder=Path(), **settings):
    found = list(budget(plan, images=1_000, mfu=0.5, folder=folder, **settings))
    values = {line[:38].strip(): line[38:].strip() for line, _ in found}
    return values, all(fine for _, fine in found)


def test_a_run_that_fits(quick_counts):
    plan = tiny_plan(2**34)
    found, well = lines_of(plan)
    assert well
    assert found["optimizer step"] == "32 images = 2 ranks x 1 pass of 16"
    parts = [found[name] for name in plan.parts(plan.wanted)]
    assert all(re.match(r"[\d.,]+ [MG]iB", part) for part in parts)
    assert found["together"] == size(sum(plan.parts(plan.wanted).values()))
    assert found["fits"] == f"yes, {size(-plan.missing(plan.wanted))} to spare"
    # two newest, every hundredth of a thousand, and one being written
    assert found["13 train states"] == f"{size(13 * plan.saved)}, {size(plan.saved)} each"
    assert found["latents of 1,000 images"].startswith(size(1_000 * 4 * 4 * 8 * 8))
    once, again = plan.flops
    assert again == 0
    assert found["forward and backward"].startswith(flop(once))
    assert found["1,000 steps"] == f"32,000 images, {flop(32_000 * once)}"
    assert found["in all"].startswith(f"{duration(32_000 * once / (0.5 * 2 * 1e12))} on 2 GPU")


def test_a_run_that_does_not_fit_is_told_what_does(quick_counts):
    need = sum(tiny_plan(None).parts(tiny_plan(None).wanted).values())
    found, well = lines_of(tiny_plan(int((need - 2**20) / 0.95)))
    assert not well
    assert found["fits"].startswith("NO, ")
    assert found["these options fit"].startswith("--run.micro-batch-size 8")
    found, well = lines_of(tiny_plan(2**20))
    assert not well
    assert "nothing fits" in found


def test_checkpointing_costs_time_and_saves_memory(quick_counts):
    found, _ = lines_of(tiny_plan(2**34, gradient_checkpointing=True))
    assert found["computed twice (checkpointing)"] == "1 GFLOP per image"
    assert found["1,000 steps"] == f"32,000 images, {flop(32_000 * 4e9)}"
    assert "without gradient checkpointing" in found["pass over 16 images"]
    assert "peak" in lines_of(tiny_plan(2**34, peak=None))[0]


def test_text_features_save_the_time_of_the_text_encoder(quick_counts):
    plan = tiny_plan(2**34)
    found, _ = lines_of(plan)
    saved = text_flops(plan.task, plan.shape, plan.text_encoder)
    assert 0 < saved < 3e9
    left = 32_000 * (3e9 - saved) / (0.5 * 2 * 1e12)
    assert found["with text features (encode)"] == (
        f"{duration(left)}, {left * 2 / 86_400:,.3g} GPU-days, and {size(2 * 48 * 256)} for each caption"
    )
    cached = Plan(plan.task, plan.fit, plan.run, plan.shape, plan.hardware, 2, cached_text=True)
    found, _ = lines_of(cached)
    assert "with text features (encode)" not in found
    assert found["forward and backward"].endswith("without a text encoder")
    assert found["text features of 1,000 captions"].startswith(f"at most {size(1_000 * 2 * 48 * 256)}")
    assert cached.frozen == 0 < plan.frozen and not any(
        "frozen" in name for name in cached.parts(cached.wanted)
    )
    learns = replace(plan.task, train_text_encoder=True)
    with pytest.raises(UserError, match="cached text: got a text encoder that is new or learns"):
        Plan(learns, plan.fit, plan.run, plan.shape, plan.hardware, 2, cached_text=True)
    plan = Plan(learns, plan.fit, plan.run, plan.shape, plan.hardware, 2)
    assert "with text features (encode)" not in lines_of(plan)[0]


def test_too_little_disk_is_not_well(quick_counts, monkeypatch):
    monkeypatch.setattr(stage, "free_disk", lambda _: 2**20)
    found, well = lines_of(tiny_plan(2**34))
    assert not well
    assert "TOO LITTLE" in found["free here"]


def test_too_little_ram_is_not_well(quick_counts, monkeypatch):
    monkeypatch.setattr(stage, "free_memory", lambda: 2**20)
    found, well = lines_of(tiny_plan(2**34))
    assert not well
    assert found["RAM of the machine"].endswith("TOO MUCH for 1.00 MiB")


def test_what_is_offloaded_takes_ram(quick_counts):
    plan = tiny_plan(2**34)
    found, _ = lines_of(plan)
    assert found["RAM of the machine"] == f"{size(plan.saved)} (a state while it is saved)"
    plan = tiny_plan(2**34, ranks=1, offload=True)
    need = 2 * plan.saved + plan.sizes["weights"]
    assert lines_of(plan)[0]["RAM of the machine"].startswith(f"{size(need)} (the state, gradients")


def test_units():
    assert [size(n) for n in (5 * 2**20, 2**29, 3 * 2**35, 2**41)] == [
        "5.00 MiB",
        "0.50 GiB",
        "96.0 GiB",
        "2.00 TiB",
    ]
    assert [flop(n) for n in (2e9, 3.456e12, 5e15, 4.61e20, 8e21)] == [
        *("2 GFLOP", "3.46 TFLOP", "5 PFLOP", "461 EFLOP", "8 ZFLOP")
    ]
    assert [duration(n) for n in (5, 300, 9_000, 864_000)] == ["5 s", "5 minutes", "2.5 hours", "10 days"]


def test_the_command_plans_a_recipe(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["doctor", "pretrain-nano", "--gpu", "rtx 3090", "--images", "500", *TINY_NANO]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "\npretrain-nano\nfor 1 x RTX 3090 (planned), 23.6 GiB free" in told
    assert "latents of 500 images" in told
    wide = [*arguments, "--fit.global-batch-size", "262144"]
    assert main(wide) == 1
    told = capsys.readouterr().out
    options = re.search(r"these options fit +(--run\.micro-batch-size \d+)", told)
    assert options is not None
    assert main([*wide, *options[1].split()]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["now"], "got 'now', allowed: --help"),
        (["pretrain-nan"], "did you mean 'pretrain-nano'?"),
        (["pretrain-nano", "--gpu", "H10"], "unknown GPU 'H10', did you mean 'H100'?"),
        (["pretrain-nano", "--mfu", "2"], "got --mfu 2.0, allowed: above 0 to 1"),
        (["pretrain-nano", "--ranks", "7"], "got 7, allowed: a divisor of the global batch of 64"),
        (["pretrain-nano", "--images", "0"], "got --images 0, allowed: from 1"),
        (["pretrain-nano", "--run.micro-bach-size", "7"], "did you mean '--run.micro-batch-size'?"),
        (["finetune-nano", "--model", "papr"], "got --model 'papr', did you mean 'paper'?"),
        (["finetune-nano", "--model", "paper", "--start", "x"], "not allowed with"),
        (["nano-autoencoder"], "got 'nano-autoencoder', allowed: a recipe of train that trains a student"),
        (["nano-weights"], "got 'nano-weights', allowed: a recipe of train that trains a student"),
        (["--gpu", "H100"], "unknown option '--gpu'"),
    ],
)
def test_the_command_refuses_in_one_line(capsys, arguments, said):
    assert main(["doctor", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert said in told.err


def test_the_shape_of_a_start_that_is_not_there_yet(capsys):
    from lightgen.cli.doctor import _model

    assert _model(None, PretrainTask()) == "nano"
    assert _model(None, PretrainTask(image_size=512)) == "paper"
    assert _model("base", PretrainTask()) == "base"


def test_help_of_a_recipe_names_its_options(capsys):
    assert main(["doctor", "pretrain-nano", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--ranks" in told
    assert "--run.micro-batch-size" in told


@pytest.mark.slow
def test_the_papers_recipe_fits_eight_large_gpus_and_not_a_small_one(capsys):
    assert main(["doctor", "pretrain-256", "--gpu", "H200", "--ranks", "8"]) == 0
    assert main(["doctor", "pretrain-256", "--gpu", "RTX 4090"]) == 1
