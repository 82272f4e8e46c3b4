"""A tiny student in training, in processes that may be killed, and on several ranks of this machine."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lightgen.cli.main import main
from lightgen.core.draws import torch_draws
from lightgen.core.interrupts import Terminated
from lightgen.core.ranks import RankLost, join_ranks, leave_ranks, rank
from lightgen.models.student import Student
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.masked import MaskedConfig, MaskedObjective, draw_masking
from lightgen.stages.student_jobs import layers_of
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.fit import STATES, Training, fit
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig

ROOT = Path(__file__).parents[2]
MODULE = "tests.training.toy_faults"
NUM_STEPS, BATCH, NUM_SAMPLES = 6, 8, 40
MASKED = MaskedConfig(draws_per_token=2, text_drop=0.3)
SHAPE = {"latent_channels": 2, "patch_size": 2, "text_width": 12, "width": 32, "num_heads": 2}
SHAPE |= {"encoder_layers": 1, "decoder_layers": 2, "head_width": 16, "head_layers": 2}
SHAPE |= {"position_grid": 4, "text_length": 5, "dropout": 0.1}


class Features(NamedTuple):
    last_hidden_state: torch.Tensor


class Words(nn.Module):
    """Text encoder of 20 words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(20, 12), nn.Linear(12, 12)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Features:
        return Features(torch.tanh(self.mix(self.embed(input_ids))))


def student(**shape: Any) -> Student:
    """A tiny student of keyed weights that are nowhere zero."""
    made = Student(LightGenTransformer(**{**SHAPE, **shape}), Words(), train_text_encoder=True)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(made.named_parameters()):
            noise = torch.randn(parameter.shape, generator=torch_draws(0, "test-weights", index))
            noise *= 0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            is_scale = parameter.ndim == 1 and ("norm" in name or "scale" in name) and "bias" not in name
            parameter.copy_(1 + noise if is_scale else noise)
    return made


class Samples:
    """Samples that depend on their ids alone, in an order that depends on the step alone."""

    def __init__(self, head: nn.Module) -> None:
        self.head: Any = head

    def ids(self, step: int) -> list[int]:
        return [(7 * (BATCH * step + i)) % NUM_SAMPLES for i in range(BATCH)]

    def load(self, ids: Sequence[int], step: int) -> dict[str, Any]:
        draws = [torch_draws(0, "test-sample", each) for each in ids]
        text_ids = torch.stack([torch.randint(1, 20, (5,), generator=random) for random in draws])
        return {
            "latents": torch.stack([torch.randn(2, 6, 4, generator=random) for random in draws]),
            "text_ids": text_ids,
            "text_mask": torch.ones_like(text_ids, dtype=torch.bool),
            "ids": list(ids),
            "masking": draw_masking(MASKED, step, ids, 6, self.head),
        }


Settings = Mapping[str, Any]
Moment = Callable[[str], None]


def no_moment(what: str) -> None:
    """Nothing befalls."""


def train(folder: Path, settings: Settings, moment: Moment = no_moment) -> int:
    """Steps done by a run into the folder; every micro-batch is noted in `ids.jsonl` and is a `moment`.

    Settings: `fit` and `run` change the numbers, `shape` that of the student, `name` the optimizer.
    """
    trained = student(**settings.get("shape", {}))
    if settings.get("run", {}).get("gradient_checkpointing"):
        trained.transformer.enable_gradient_checkpointing()
    masked = MaskedObjective(MASKED)
    log = folder / "ids.jsonl"
    folder.mkdir(parents=True, exist_ok=True)

    def objective(learner: nn.Module, batch: Mapping[str, Any], step: int) -> Any:
        line = {"process": os.getpid(), "step": step, "ids": batch["ids"], "seconds": time.time()}
        with log.open("a") as file:
            file.write(json.dumps({**line, "rank": os.environ.get("RANK", "0")}) + "\n")
        moment(f"step {step}")
        return masked(learner, batch, step)  # pyright: ignore[reportArgumentType]

    name = settings.get("name", "muon")
    config = FitConfig(
        **{
            "num_steps": NUM_STEPS,
            "global_batch_size": BATCH,
            "optimizer": OptimizerConfig(name=name, lr=2e-3, muon_lr=4e-3),
            "schedule": ScheduleConfig(kind="wsd", warmup_steps=2, decay_steps=3),
            "precision": "fp32",
            "ema_decay": 0.8,
            **settings.get("fit", {}),
        }
    )
    run = {"micro_batch_size": 2, "save_every": 2, "log_every": 1, "held_out_every": 3, "keep_last": 3}
    training = Training(
        learner=trained,
        objective=objective,
        source=Samples(trained.transformer.head),
        layers=layers_of(trained.transformer),
        held_out=((100, 101, 102),),
    )
    return fit(config, training, folder, RunConfig(**{**run, **settings.get("run", {})}))


def life(folder: str, settings: Settings, death: int | None = None, count_to: str | None = None) -> None:
    """Train in this process, which kills itself at a moment: a micro-batch, or any touch of a saved file.

    Args:
        folder, settings: see `train`.
        death: number of the moment.
        count_to: file that receives what every moment was.
    """
    seen: list[str] = []

    def moment(what: str) -> None:
        seen.append(what)
        if len(seen) - 1 == death:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    on_touch(Path(folder), moment)
    train(Path(folder), settings, moment)
    if count_to is not None:
        Path(count_to).write_text(json.dumps(seen))


def on_touch(folder: Path, moment: Moment) -> None:
    """Have every touch of a file inside a folder (open, rename, remove) call a function just before."""
    inside = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        names = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
        if event in names and inside in str(arguments[0]) and "ids.jsonl" not in str(arguments[0]):
            moment(f"{event} {Path(str(arguments[0])).name}")

    sys.addaudithook(hook)


def lightgen(command: Sequence[str], errors: str) -> int:
    """Exit code of the command in this process; what it says goes to a file."""
    with Path(errors).open("w") as file:
        os.dup2(file.fileno(), 2)
    return main(command)


def processes() -> ForkServerContext:
    """Where processes start from one that has imported everything, in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([MODULE, "lightgen.stages.train"])
    return context


def start(target: Callable[..., int | None], *arguments: Any) -> Process:
    """A process that runs a function of this module; it may have children of its own."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    made: Any = processes().Process(target=_prepared, args=(target, arguments), daemon=False)
    made.start()
    return made


def end(process: Process, seconds: float = 300.0) -> int:
    """Exit code of a process; it is killed if it does not end in time."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"no end within {seconds} s")
    assert process.exitcode is not None
    return process.exitcode


def _prepared(target: Callable[..., int | None], arguments: tuple[Any, ...]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    sys.exit(target(*arguments))


class Fault(NamedTuple):
    """A signal that a rank sends itself, once, at a moment of a run (see `life`)."""

    rank: int
    number: int
    signal: int

    def moment(self, folder: Path) -> Moment:
        """What strikes; `struck` in the folder then says when."""
        seen = []

        def strike(what: str) -> None:
            seen.append(what)
            if rank() == self.rank and len(seen) == self.number + 1 and not (folder / "struck").exists():
                (folder / "struck").write_text(str(time.time()))
                os.kill(os.getpid(), self.signal)

        return strike


Job = tuple[str, Settings]


def start_ranks(num: int, jobs: Sequence[Job], fault: Fault | None = None) -> list[Process]:
    """Ranks that train every job (a folder and settings), one after the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [start(_rank, number, num, port, list(jobs), fault) for number in range(num)]


def run_ranks(num: int, jobs: Sequence[Job], seconds: float = 600.0) -> None:
    """Train every job on so many ranks, which are started once and may take so long."""
    codes = [end(process, seconds) for process in start_ranks(num, jobs)]
    assert codes == [0] * num, codes


def _rank(number: int, num: int, port: str, jobs: list[Job], fault: Fault | None) -> int:
    if num > 1:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(num)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return train_as_rank(jobs, fault)


def train_as_rank(jobs: Sequence[Job], fault: Fault | None) -> int:
    """Exit code of this rank; where another was lost, `lost-RANK` in the job's folder is what it said."""
    for folder, settings in jobs:
        run = RunConfig(**settings.get("run", {}))
        try:
            join_ranks(run.timeout_s)
            moment = Fault.moment(fault, Path(folder)) if fault else no_moment
            on_touch(Path(folder) / STATES, moment)
            train(Path(folder), settings, moment)
        except RankLost as error:
            (Path(folder) / f"lost-{rank()}").write_text(str(error))
            return 1
        except Terminated:
            return 143
    leave_ranks()
    return 0


def random_of(*ids: object) -> np.random.Generator:
    """Draws that are the same in each run of the tests."""
    return np.random.default_rng(list("-".join(map(str, ids)).encode()))


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    sys.exit(train_as_rank(told["jobs"], Fault(*told["fault"])))
