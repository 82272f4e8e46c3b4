import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest

from lightgen.core.config import (
    config_from_dict,
    config_to_dict,
    digest,
    environment,
    first_difference,
    set_environment,
    suggestion,
)
from lightgen.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class MaskedConfig:
    ratio: float = 0.7


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    beta: float = 2000.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 10
    name: str = "run"
    compiled: bool = False
    start: Path | None = None
    sizes: tuple[int, ...] = (64, 128)
    kind: Literal["flow", "ddpm"] = "flow"
    every: int | Literal["never"] = "never"
    weights: dict[str, float] = field(default_factory=lambda: {"l1": 1.0})
    crops: list[tuple[int, int]] = field(default_factory=lambda: [(1, 2)])
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: MaskedConfig | DpoConfig = MaskedConfig()
    precision: Annotated[str, "for the command line"] = "bf16"


VARIANTS = [
    TrainConfig(),
    TrainConfig(start=Path("runs/x"), sizes=(), every=5, objective=DpoConfig(beta=1.0), kind="ddpm"),
    TrainConfig(optimizer=OptimizerConfig(lr=5, betas=(0, 1)), crops=[], weights={}, compiled=True),
]


@pytest.mark.parametrize("config", VARIANTS)
def test_a_config_survives_json(config):
    record = json.loads(json.dumps(config_to_dict(config)))
    again = config_from_dict(TrainConfig, record)
    assert again == config
    assert type(again.optimizer.lr) is float
    assert digest(again) == digest(config) == digest(record)


def test_the_digest_knows_every_change_and_no_order():
    digests = {digest(config) for config in VARIANTS}
    assert len(digests) == len(VARIANTS)
    assert digest(replace(TrainConfig(), steps=11)) not in digests
    assert digest({"a": 1, "b": [2.0]}) == digest({"b": [2], "a": 1.0})
    assert digest({"a": 1}) != digest({"a": "1"})
    assert digest({"a": 1}) != digest({"a": True})
    assert digest([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # sha256 of "[]"


def changed(*path, to=None, drop=False):
    record = json.loads(json.dumps(config_to_dict(TrainConfig())))
    at = record
    for key in path[:-1]:
        at = at[key]
    if drop:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (changed("stepz", to=1), "TrainConfig: unknown key 'stepz', did you mean 'steps'?"),
        (
            changed("optimizer", "momentum", to=1),
            "TrainConfig.optimizer: unknown key 'momentum', allowed: lr, betas",
        ),
        (changed("name", drop=True), "TrainConfig: missing key 'name'"),
        (changed("steps", to="10"), "TrainConfig.steps: got '10', allowed: int"),
        (changed("steps", to=True), "TrainConfig.steps: got True, allowed: int"),
        (changed("steps", to=1.5), "TrainConfig.steps: got 1.5, allowed: int"),
        (changed("compiled", to=1), "TrainConfig.compiled: got 1, allowed: bool"),
        (changed("optimizer", "lr", to=float("nan")), "TrainConfig.optimizer.lr: got nan, allowed: float"),
        (changed("optimizer", "betas", to=[0.9]), "TrainConfig.optimizer.betas: got [0.9], allowed: tuple"),
        (changed("kind", to="edm"), "TrainConfig.kind: got 'edm', allowed: 'flow', 'ddpm'"),
        (
            changed("every", to="always"),
            "TrainConfig.every: got 'always', allowed: one of int, typing.Literal",
        ),
        (
            changed("objective", to={"gamma": 1}),
            "TrainConfig.objective: got {'gamma': 1}, allowed: one of Masked",
        ),
        (changed("name", to=None), "TrainConfig.name: got None, allowed: str"),
        ([], "TrainConfig: got [], allowed: an object"),
    ],
)
def test_nothing_is_guessed(record, said):
    with pytest.raises(UserError) as caught:
        config_from_dict(TrainConfig, record)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_that_is_not_finite_is_refused():
    with pytest.raises(UserError, match=r"TrainConfig\.optimizer\.lr: got inf, allowed: a finite number"):
        config_to_dict(TrainConfig(optimizer=OptimizerConfig(lr=float("inf"))))


def test_the_first_difference_is_named():
    old = config_to_dict(TrainConfig())
    assert first_difference(old, old) == ""
    assert (
        first_difference(old, {**old, "optimizer": {"lr": 2, "betas": [0, 1]}})
        == "config.optimizer.lr 0.001, now 2"
    )
    assert first_difference({"a": None}, {}) == "config.a None, now None"


def test_suggestion():
    assert suggestion("pretrain-nan", ["pretrain-nano", "dpo-nano"]) == ", did you mean 'pretrain-nano'?"
    assert suggestion("zzz", ["pretrain-nano"]) == ""


def test_environment_takes_empty_for_unset(monkeypatch):
    monkeypatch.delenv("LIGHTGEN_X", raising=False)
    assert environment("LIGHTGEN_X") is None
    monkeypatch.setenv("LIGHTGEN_X", "")
    assert environment("LIGHTGEN_X") is None
    monkeypatch.setenv("LIGHTGEN_X", "here")
    assert environment("LIGHTGEN_X") == "here"


def test_an_environment_variable_is_set_unless_it_is(monkeypatch):
    monkeypatch.delenv("LIGHTGEN_TRY", raising=False)
    set_environment("LIGHTGEN_TRY", "one")
    set_environment("LIGHTGEN_TRY", "two")
    assert environment("LIGHTGEN_TRY") == "one"
    monkeypatch.delenv("LIGHTGEN_TRY")
