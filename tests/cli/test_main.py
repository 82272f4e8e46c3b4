import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lightgen.cli import generate, main, quickstart, stage
from lightgen.cli.main import main as run
from lightgen.core.artifact import open_artifact
from lightgen.core.errors import UserError
from lightgen.core.interrupts import Terminated
from lightgen.stages import align as align_stage
from lightgen.stages import distill as distill_stage
from lightgen.stages import quickstart as quickstart_stage
from lightgen.stages import sweep as sweep_stage

ROOT = Path(__file__).parents[2]
DISTILL = ["distill", "nano-teacher", "--prompts.num", "6", "--height", "64", "--width", "64"]
SMALL = [
    *("--task.model.width", "32", "--task.model.num-heads", "2", "--task.model.encoder-layers", "1"),
    *("--task.model.decoder-layers", "1", "--task.model.head-width", "32", "--task.model.head-layers", "1"),
    *("--fit.num-steps", "2", "--fit.global-batch-size", "2", "--fit.precision", "fp32"),
]


def refusal(capsys, *arguments):
    """The one line with which the arguments are refused."""
    assert run([str(each) for each in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("lightgen: ")
    return told.err


def test_help_lists_the_commands(capsys):
    assert run(["--help"]) == 0
    told = capsys.readouterr().out
    for command in ("quickstart", "generate", "distill", "encode", "train", "align", "evaluate", "doctor"):
        assert f"\n  {command}" in told
    assert run([]) == 2
    assert run(["--version"]) == 0


def test_help_is_quick():
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "lightgen.cli.main", "--help"], cwd=ROOT, check=True, capture_output=True
    )
    assert time.monotonic() - began < 3, "half a second on an idle machine; torch alone would take longer"


@pytest.mark.parametrize("name", ["distill", "encode", "train", "rank", "align", "evaluate"])
def test_help_of_a_stage_lists_its_recipes(name, capsys):
    from lightgen import recipes

    assert run([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {recipe}" in told for recipe in recipes.describe(name))
    assert run([name]) == 2


def test_help_of_a_recipe_lists_every_number(capsys):
    assert run(["train", "finetune-nano", "--help"]) == 0
    told = capsys.readouterr().out
    for option in ("--in", "--out", "--start", "--fit.optimizer.muon-lr", "--task.objective.text-drop"):
        assert option in told
    assert run(["align", "nano", "--help"]) == 0
    told = capsys.readouterr().out
    for option in ("--in", "--start", "--detector", "--train.task.objective.beta", "--reference"):
        assert option in told
    for command in ("generate", "quickstart", "doctor"):
        with pytest.raises(SystemExit) as end:
            run([command, "--help"])
        assert end.value.code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "unknown command 'trian', did you mean 'train'?"),
        (["xyz"], "unknown command 'xyz', allowed: quickstart, generate"),
        (["train", "pretrain-nan"], "train: unknown recipe 'pretrain-nan', did you mean 'pretrain-nano'?"),
        (["train", "--out", "x"], "train: got '--out' in place of a recipe, allowed: nano-autoencoder"),
        (["encode", "nano", "--in", "x"], "encode nano: got no --out"),
        (["encode", "nano", "--out", "x"], "--in: got nothing, allowed: one or more directories of images"),
        (["encode", "nano", "--out", "x", "--batch-siez", "3"], "did you mean '--batch-size'?"),
        (["encode", "nano", "--out", "x", "--batch-size", "many"], "--batch-size: invalid literal"),
        (["encode", "nano", "--out", "x", "--batch-size"], "Missing value for argument '--batch-size'"),
        (["encode", "nano", "--out", "x", "--precision", "fp8"], "invalid choice 'fp8'"),
        (["encode", "nano", "--out", "x", "--in"], "argument --in: expected at least one argument"),
        (["encode", "nano", "stray", "--out", "x"], "got 'stray', allowed: --help, --in, --out, --start"),
        (["train", "dpo-nano", "--out", "x", "--fit.optimizer.l", "3"], "did you mean '--fit.optimizer.lr'?"),
        (["train", "nano-weights", "--out", "x", "--in", "y"], "got --in or a checkpoint, allowed: --out"),
        (["align", "nan"], "align: unknown recipe 'nan', did you mean 'nano'?"),
        (["align", "nano"], "align nano: got no --out"),
        (["align", "nano", "--out", "x", "--rounds", "0"], "align: got rounds 0, patience"),
        (["align", "nano", "--out", "x", "--reference", "still"], "invalid choice 'still'"),
        (["align", "nano", "--out", "x", "--start", "no/such"], "no/such: no such directory"),
        (["align", "nano-sweep", "--out", "x", "--align.patience", "0"], "patience 0, allowed: whole"),
        (["align", "nano-sweep", "--out", "x", "--beta", "1"], "did you mean '--betas'?"),
        (["generate"], "generate: the following arguments are required: prompt"),
        (["generate", "dog", "--sede", "3"], "unknown option '--sede', did you mean '--seed'?"),
        (["generate", "dog", "--size", "big"], "--size 'big', allowed: a side in px such as 128"),
        (["generate", "dog", "--num", "0"], "--num 0, allowed: a whole number from 1"),
        (["generate", "dog", "-n", "0"], "--num 0, allowed: a whole number from 1"),
        (["generate", "dog", "-n", "many"], "argument -n/--num: invalid int value: 'many'"),
        (["generate", "dog", "--head-steps", "-1"], "--head-steps -1, allowed: a whole number from 1"),
        (["generate", "dog", "--head-steps", "9999"], "num_head_steps: got 9999, allowed: a whole number"),
        (["generate", "dog", "--steps", "99999"], "num_iterations: got 99999, allowed: a whole number"),
        (["generate", "dog", "--guidance", "nan"], "guidance_scale: got nan, allowed: a number from 0 to"),
        (["generate", "dog", "--guidance", "-2"], "guidance_scale: got -2.0, allowed: a number from 0 to"),
        (["generate", "dog", "--preset", "fats"], "preset: got 'fats', did you mean 'fast'?"),
        (["generate", "dog", "-n", "2", "cat"], "got 'cat', allowed: --help, --size"),
        (["generate", "dog", " "], "prompt 2: got a blank text"),
        (["generate", "dog", "dog"], "got 'dog' twice, allowed: each prompt once"),
        (["generate", "x" * 10_000_000], "prompt: got 10000000 characters, allowed: at most 2000"),
        (["generate", "dog", "--negative", "x" * 3000], "negative_prompt: got 3000 characters"),
        (["generate", "dog", "--out", "dog.gif"], "--out: got 'dog.gif', allowed: a name ending in .png"),
        (["generate", "dog", "--grid", "dog.gif"], "--grid: got 'dog.gif', allowed: a name ending in .png"),
        (["generate", "dog", "--model", "no/such"], "no/such: no such directory"),
        (["generate", "dog", "--size", "100"], "size: got 100x100 px (width x height), allowed: sides in"),
        (["generate", "dog", "--size", "64x99999"], "size: got 64x99999 px"),
        (["quickstart", "--minutes", "-1"], "--minutes -1.0, allowed: above 0"),
        (["doctor", "now"], "got 'now', allowed: --help"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_2(arguments, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert told in refusal(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "No space left on device: a/b"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "Permission denied: a/b"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; what is done is kept, and a stage run again goes on from its saved state",
        ),
        (
            Terminated(),
            143,
            "terminated; what is done is kept, and a stage run again goes on from its saved state",
        ),
        (UserError("columns: got \x1b]0;x\x07\x1b[2Jno"), 2, "columns: got \ufffd]0;x\ufffd\ufffd[2Jno"),
        (RuntimeError("two\nlines"), 1, "failed, RuntimeError: two lines; LIGHTGEN_DEBUG=1 shows where"),
    ],
)
def test_ways_to_end(error, code, told, capsys, monkeypatch):
    def end(*_):
        raise error

    monkeypatch.delenv("LIGHTGEN_DEBUG", raising=False)
    monkeypatch.setattr(main, "_run", end)
    assert run(["anything"]) == code
    assert capsys.readouterr().err == f"lightgen: {told}\n"


def test_debugging_shows_the_traceback(monkeypatch):
    def end(_):
        raise RuntimeError("somewhere")

    monkeypatch.setattr(main, "_run", end)
    monkeypatch.setenv("LIGHTGEN_DEBUG", "1")
    with pytest.raises(RuntimeError, match="somewhere"):
        run(["anything"])


def test_the_chain_by_hand(toy, tmp_path, capsys):
    def do(*arguments):
        assert run([str(each) for each in arguments]) == 0
        return capsys.readouterr().out

    told = do(*DISTILL, "--out", tmp_path / "images", "--teacher.errors.wrong-count", "0.5")
    assert told == f"{tmp_path}/images  images: 6 images, 6 prompts\n"
    assert open_artifact(tmp_path / "images").config["teacher"]["errors"]["wrong_count"] == 0.5
    do(
        "encode",
        "nano",
        "--in",
        tmp_path / "images",
        "--start",
        toy.student.path,
        "--out",
        tmp_path / "latents",
    )
    do(
        *("train", "pretrain-nano", "--in", tmp_path / "latents", "--start", toy.student.path),
        *("--out", tmp_path / "student", *SMALL, "--fit.schedule.decay-steps", "1", "--fit.held-out", "2"),
    )
    settings = open_artifact(tmp_path / "student").config
    assert (settings["fit"]["num_steps"], settings["task"]["model"]["width"]) == (2, 32)
    do("rank", "source", "--in", tmp_path / "images", "--out", tmp_path / "ranked")
    do(
        *("evaluate", "nano-geneval", "--in", tmp_path / "student", "--out", tmp_path / "report"),
        *("--prompts.num", "6", "--height", "64", "--width", "64", "--student.overrides.num-iterations", "2"),
        *(
            "--student.precision",
            "fp32",
            "--bootstrap.resamples",
            "200",
            "--judge.self-test.num-prompts",
            "4",
        ),
        *("--judge.self-test.least-right", "0", "--judge.self-test.most-wrong", "1"),
        *("--judge.self-test.least-overlap", "0", "--detector", toy.detector.path),
    )
    assert "overall" in json.loads((tmp_path / "report" / "report.json").read_text())
    told = do(
        *("generate", "a dog", "--model", tmp_path / "student", "--size", "64x80", "--steps", "2"),
        *("--num", "2", "--seed", "5", "--out", f"{tmp_path}/pictures/"),
    )
    assert told == f"{tmp_path}/pictures/a-dog-5.png\n{tmp_path}/pictures/a-dog-6.png\n"


def test_every_option_of_generate(toy, tmp_path, capsys):
    command = [
        *(
            "generate",
            "a dog",
            "two cats",
            "-n",
            "2",
            "--seed",
            "5",
            "--out",
            f"{tmp_path}/",
            "--size",
            "64x80",
        ),
        *(
            "--preset",
            "fast",
            "--steps",
            "3",
            "--head-steps",
            "2",
            "--guidance",
            "2.5",
            "--negative",
            "a car",
        ),
        *("--grid", f"{tmp_path}/sheet.png", "--model", str(toy.student.path)),
    ]
    assert run(command) == 0
    told = capsys.readouterr()
    names = ["a-dog-5.png", "a-dog-6.png", "two-cats-5.png", "two-cats-6.png", "sheet.png"]
    assert told.out.splitlines() == [f"{tmp_path}/{name}" for name in names]
    with Image.open(tmp_path / "two-cats-6.png") as picture:
        assert picture.size == (64, 80)
        facts = json.loads(picture.text["lightgen"])
    wanted = {
        **{"prompt": "two cats", "negative_prompt": "a car", "seed": 6, "preset": "fast"},
        **{"num_iterations": 3, "num_head_steps": 2, "guidance_scale": 2.5, "refresh_every": 2},
        **{"solver": "dpm++", "model_digest": toy.student.digest},
    }
    assert {name: facts[name] for name in wanted} == wanted
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (128, 160)


def test_inputs_of_the_wrong_kind(toy, tmp_path, capsys):
    told = refusal(capsys, "encode", "nano", "--in", toy.latents.path, "--out", tmp_path / "x")
    assert "got kind 'latents', allowed: images" in told
    told = refusal(capsys, "train", "finetune-nano", "--in", toy.images.path, "--out", tmp_path / "x")
    assert "got images and no task.image_size, allowed: latents, or a size in px" in told
    told = refusal(capsys, "train", "dpo-nano", "--in", toy.images.path, "--out", tmp_path / "x")
    assert "got kind 'images', allowed: latents" in told
    told = refusal(
        *(capsys, "train", "pretrain-nano", "--in", toy.latents.path, "--out", tmp_path / "x"),
        *("--fit.num-steps", "100"),
    )
    assert "schedule: got decay_steps 6400, allowed: up to the 100 steps of the run" in told
    told = refusal(capsys, *DISTILL, "--out", toy.images.path)
    assert "was made with config.prompts.num 12, now 6" in told


def test_a_missing_font_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LIGHTGEN_EMOJI_FONT", "/no/such/file.ttf")
    told = refusal(capsys, *DISTILL, "--out", tmp_path / "x")
    assert "/no/such/file.ttf" in told


def test_quickstart_options(monkeypatch, tmp_path, capsys):
    seen = []

    def note(config, out):
        seen.append((config, out))
        return tmp_path / "report.html"

    monkeypatch.setattr(quickstart_stage, "quickstart", note)
    assert run(["quickstart"]) == 0
    assert run(["quickstart", "--from-scratch", "--minutes", "7", "--out", "elsewhere"]) == 0
    (plain, here), (scratch, there) = seen
    assert (here, there) == ("runs/quickstart", "elsewhere")
    assert plain.pretrain.task.model is None
    assert scratch.pretrain.task.model is not None
    assert scratch.pretrain_minutes == 7
    assert scratch.expected_s["student"] == 440
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n" * 2


def test_options_of_align(toy, monkeypatch, tmp_path, capsys):
    seen = []

    def noting(name):
        return lambda config, *places: seen.append((name, config, *places)) or toy.student

    for module, name in ((align_stage, "align"), (sweep_stage, "sweep")):
        monkeypatch.setattr(module, name, noting(name))
    places = ["--in", "a.jsonl", "b.jsonl", "--start", "first", "--detector", "judge"]
    command = ["align", "nano", "--out", "x", "--rounds", "3", "--train.fit.optimizer.lr", "0.5"]
    assert run([*command, *places]) == 0
    assert capsys.readouterr().out.startswith(f"{toy.student.path}  checkpoint")
    assert run(["align", "nano-sweep", "--out", "y", "--betas", "1", "2", "--align.rounds", "4"]) == 0
    (one, config, *where), (two, swept, *elsewhere) = seen
    assert (one, where) == ("align", ["x", ["a.jsonl", "b.jsonl"], "first", "judge"])
    assert (config.rounds, config.train.fit.optimizer.lr) == (3, 0.5)
    assert (two, elsewhere) == ("sweep", ["y", [], "nano", None])
    assert (swept.betas, swept.align.rounds) == ((1.0, 2.0), 4)


def test_a_terminated_run_keeps_its_shards_and_continues(tmp_path, capsys, monkeypatch):
    write, names = distill_stage.write_image_shard, []

    def write_and_be_terminated(path, records, format):
        names.append(path.name)
        if len(names) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(path, records, format)

    monkeypatch.setattr(distill_stage, "write_image_shard", write_and_be_terminated)
    before = signal.getsignal(signal.SIGTERM)
    command = [*DISTILL, "--shard-size", "1", "--out", str(tmp_path / "images")]
    assert run(command) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    told = capsys.readouterr().err
    assert (
        told.splitlines()[-1]
        == "lightgen: terminated; what is done is kept, and a stage run again goes on from its saved state"
    )
    assert not (tmp_path / "images").exists()
    assert run(command) == 0
    assert names[:3] == [f"images-0000{i}.tar" for i in range(3)]
    assert names[3:] == [f"images-0000{i}.tar" for i in range(2, 6)]


def test_the_commands_are_where_main_looks_for_them():
    for name, function in (
        ("generate", generate.run_generate),
        ("quickstart", quickstart.run_quickstart),
    ):
        assert main._command(name) is function
    assert callable(stage.run_stage)
