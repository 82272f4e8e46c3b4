"""The page of a study: its question, what is claimed, plots of what the arms came to, and cost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lightgen.core.config import config_to_dict
from lightgen.evals.axes import fit_axis
from lightgen.evals.bars import Bar
from lightgen.evals.page import cell_number, short_number
from lightgen.evals.report import Cell, Fact, Report
from lightgen.evals.tables import OVERALL
from lightgen.stages.study_answers import AGREES, CONTRADICTS, LOSS, UNKNOWN, answers
from lightgen.stages.study_config import ArmResult, StudyConfig

_MARKS = {AGREES: "✓ agrees", CONTRADICTS: "✗ contradicts", UNKNOWN: "? cannot be told"}
# Arms of no series, beside arms of some.
_OTHERS = "others"
_SHORT = 12
# Ticks at the arms' own places, if there are no more of them, and none nearer than this share of the axis.
_MOST_TICKS, _NEAR = 8, 0.06
_SIZE = "Whiskers hold 95 % of resampled sets of seeds and test prompts."
_ONE_SEED = (
    "Each arm ran with one seed, so that the intervals tell what other test prompts could change, and not "
    "what another training would: a verdict may turn with a second seed."
)
_ENOUGH_SEEDS = 5
_FEW_SEEDS = "With so few seeds, intervals are too narrow where trainings of other seeds differ much."
_LOSS_SIZE = "Whiskers are Student's intervals of 95 % over seeds, where there are two or more."
_LOSS_NOTE = "Losses compare arms of one objective alone."

Answers = Mapping[str, Any]


def study_page(
    config: StudyConfig, results: Sequence[ArmResult], found: Answers | None = None, command: str = ""
) -> Report:
    """Report on a finished study.

    Args:
        config: what was asked.
        results: of all arms and seeds.
        found: what `answers` said of them; None asks it.
        command: what makes the study again; without it the page shows none.

    Raises:
        UserError: an arm has no result, or arms were judged on different prompts.
    """
    found = answers(config, results) if found is None else found
    page = Report(config.title, f"{config.question}\n\n{_outcome(found)}")
    page.facts(_facts(found))
    _add_claims(page, found)
    _add_scores(page, config, found)
    _add_loss(page, config, found)
    _add_cost(page, found, results)
    page.section("How it was made", f"This makes the study again: {command}" if command else "")
    page.settings("Settings", config_to_dict(config))
    return page


def _outcome(found: Answers) -> str:
    """What the study found, in a sentence or two."""
    best = _best(found)
    text = f"Best of {len(found['arms'])}: {best}, {cell_number(found['arms'][best]['overall']['value'])}."
    verdicts = Counter(claim["verdict"] for claim in found["claims"])
    if verdicts:
        parts = (
            f"{verdicts[AGREES]}; contradicted: {verdicts[CONTRADICTS]}; not to be told: {verdicts[UNKNOWN]}"
        )
        text = f"Claims that agree with what was measured: {parts}. {text}"
    note = _ONE_SEED if found["seeds"] == 1 else _FEW_SEEDS if found["seeds"] < _ENOUGH_SEEDS else ""
    return f"{text} {note}".strip()


def _best(found: Answers) -> str:
    return max(found["arms"], key=lambda name: found["arms"][name]["overall"]["value"])


def _facts(found: Answers) -> list[Fact]:
    """Headline numbers: the claims, the best arm, and the size of the study."""
    facts, best = [], _best(found)
    if found["claims"]:
        agree = sum(claim["verdict"] == AGREES for claim in found["claims"])
        facts.append(Fact(f"{agree} of {len(found['claims'])}", "claims that agree"))
    score = found["arms"][best]["overall"]
    low, high = score["interval"]
    facts.append(Fact(cell_number(score["value"]), f"best: {best}", f"{_ends(low, high)}"))
    tests = f"{found['prompts']} test prompts, {found['images_per_prompt']} pictures of each"
    facts.append(Fact(f"{len(found['arms'])} × {found['seeds']}", "arms × seeds", tests))
    if found["tflop"] is not None:
        facts.append(Fact(f"{found['tflop']:,.4g}", "TFLOP to train an arm and seed"))
    return facts


def _ends(low: float, high: float) -> str:
    return f"{cell_number(low)} to {cell_number(high)}"


def _add_claims(page: Report, found: Answers) -> None:
    if not found["claims"]:
        return
    page.section(
        "Claims",
        "A claim agrees if the interval of the difference lies wholly on the side that it expects, and is "
        "contradicted if it lies wholly on the other. Where the same is expected, it agrees if the interval "
        "holds 0 and ends within 0.1, and is contradicted if it does not hold 0.",
    )
    rows: list[list[Cell]] = []
    for number, claim in enumerate(found["claims"], start=1):
        asked = f"“{claim['second']}” against “{claim['first']}”, {claim['task']} {claim['expected']}"
        page.text(f"{number}. {claim['text']} ({claim['source']}) Expected here: {asked}.")
        rows.append([str(number), _MARKS[claim["verdict"]], *_three(claim["difference"])])
    page.table(
        ["claim", "verdict", "found", "from", "to"],
        rows,
        "Found: score or loss of the arm named first minus that of the one it is set against, with interval",
    )


def _three(estimate: Mapping[str, Any] | None) -> tuple[float | None, float | None, float | None]:
    """Value and ends of an estimate that may be missing."""
    if estimate is None:
        return None, None, None
    low, high = estimate["interval"] or (None, None)
    return estimate["value"], low, high


def _add_scores(page: Report, config: StudyConfig, found: Answers) -> None:
    page.section(
        "Scores",
        "Share of right pictures, in the mean over tasks, on test prompts whose combinations of words no "
        "training caption holds.",
    )
    claimed = [claim["task"] for claim in found["claims"]]
    for task in (OVERALL, *(each for each in found["tasks"] if each in claimed)):
        words = "nano-GenEval" if task == OVERALL else f"{task} score"
        estimates = {
            name: arm["overall"] if task == OVERALL else arm["tasks"][task]
            for name, arm in found["arms"].items()
        }
        _add_plot(page, config, estimates, words, f"{words[0].upper()}{words[1:]} of each arm. {_SIZE}")
    _add_gains(page, config, found, OVERALL)
    rows = [
        [name, *_three(arm["overall"]), *(arm["tasks"][task]["value"] for task in found["tasks"])]
        for name, arm in found["arms"].items()
    ]
    page.table(["arm", OVERALL, "from", "to", *found["tasks"]], rows, "Scores of all arms, means over seeds")


def _add_loss(page: Report, config: StudyConfig, found: Answers) -> None:
    losses = {name: arm["loss"] for name, arm in found["arms"].items() if arm["loss"] is not None}
    if not losses:
        return
    page.section("Held-out loss", _LOSS_NOTE)
    few = (
        f" Only {len(losses)} of {len(found['arms'])} arms have one."
        if len(losses) < len(found["arms"])
        else ""
    )
    ranges = {name: _range(found["arms"][name], estimate) for name, estimate in losses.items()}
    caption = f"Held-out loss of each arm; whiskers reach from the lowest to the highest seed.{few}"
    # losses are near each other and far from 0, so that bars of them would look alike
    if len(losses) < 3 or all(arm.x is not None for arm in config.arms):
        _add_plot(page, config, ranges, "held-out loss", caption)
    _add_gains(page, config, found, LOSS)
    seeds = sorted({int(seed) for arm in found["arms"].values() for seed in arm["loss_by_seed"]})
    rows = [
        [name, losses[name]["value"], *(found["arms"][name]["loss_by_seed"].get(str(seed)) for seed in seeds)]
        for name in losses
    ]
    page.table(["arm", "mean", *(f"seed {seed}" for seed in seeds)], rows, "Held-out loss of each seed")


def _range(arm: Mapping[str, Any], estimate: Mapping[str, Any]) -> dict[str, Any]:
    """The mean loss, with the lowest and the highest seed for its interval."""
    by_seed = arm["loss_by_seed"].values()
    return {"value": estimate["value"], "interval": [min(by_seed), max(by_seed)]}


def _add_plot(
    page: Report, config: StudyConfig, estimates: Mapping[str, Mapping[str, Any]], words: str, caption: str
) -> None:
    """Add a plot of estimates of arms: over their places, or as bars where an arm has none."""
    arms = [arm for arm in config.arms if arm.name in estimates]
    if any(arm.x is None for arm in arms):
        page.bars(_bars(config, estimates), caption)
        return
    has_series = any(arm.series for arm in arms)
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for arm in arms:
        value, low, high = _three(estimates[arm.name])
        assert arm.x is not None and value is not None
        ends = (value, value) if low is None or high is None else (low, high)
        name = (arm.series or _OTHERS) if has_series else words
        points.setdefault(name, []).append((arm.x, value, *ends))
    ticks = _ticks(config, sorted({arm.x for arm in arms if arm.x is not None}))
    page.whiskers(points, config.x_label, words, caption, log_x=config.log_x, ticks=ticks)


def _bars(config: StudyConfig, estimates: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Bar]]:
    """Bars of the arms that have an estimate, by series; a series has the same colour in every chart."""
    has_series = any(arm.series for arm in config.arms)
    bars: dict[str, list[Bar]] = {}
    for arm in config.arms:
        group = bars.setdefault((arm.series or _OTHERS) if has_series else "", [])
        if arm.name in estimates:
            value, low, high = _three(estimates[arm.name])
            assert value is not None
            # short labels stay on one line
            name = arm.name.replace(" ", "\u00a0") if len(arm.name) <= _SHORT else arm.name
            group.append(Bar(name, value, low, high))
    return bars


def _ticks(config: StudyConfig, places: Sequence[float]) -> dict[float, str] | None:
    """Ticks at the places of the arms, where these are few and do not crowd; None = round numbers."""
    if not 2 <= len(places) <= _MOST_TICKS:
        return None
    axis = fit_axis(places, log=config.log_x)
    near = min(axis.share(b) - axis.share(a) for a, b in pairwise(places)) < _NEAR
    return None if near else {place: short_number(place) for place in places}


def _add_gains(page: Report, config: StudyConfig, found: Answers, task: str) -> None:
    """Add bars of each arm's difference from the first, where arms have no places on an axis."""
    first, *others = config.arms
    if len(others) < 2 or all(arm.x is not None for arm in config.arms):
        return
    gains = {arm.name: found["arms"][arm.name]["minus_first_arm"][task] for arm in others}
    gains = {name: gain for name, gain in gains.items() if gain is not None}
    if not gains:
        return
    size = _SIZE if task == OVERALL else _LOSS_SIZE
    what = "nano-GenEval" if task == OVERALL else "Held-out loss"
    chance = "Of twenty arms that change nothing, one is to be expected whose interval misses 0."
    page.bars(_bars(config, gains), f"{what} minus that of “{first.name}”, paired by seed. {size} {chance}")


def _add_cost(page: Report, found: Answers, results: Sequence[ArmResult]) -> None:
    page.section(
        "Cost",
        "TFLOP are counted, not measured. Seconds are of clock on the machine that ran, means over seeds; "
        "what arms share is counted where it was made.",
    )
    parts = list(dict.fromkeys(part for arm in found["arms"].values() for part in arm["seconds"]))
    rows = [
        [name, arm["train_tflop"], arm["draw_tflop"], *(_seconds(arm["seconds"].get(part)) for part in parts)]
        for name, arm in found["arms"].items()
    ]
    header = ["arm", "training, TFLOP", "a picture, TFLOP", *(f"{part}, s" for part in parts)]
    page.table(header, rows, "Cost of one arm and seed")
    total = {part: sum(each.seconds.get(part, 0.0) for each in results) for part in parts}
    page.timeline(
        [(part, value, "") for part, value in total.items()], "Clock of all arms and seeds together"
    )


def _seconds(value: float | None) -> float | int | None:
    """Seconds for a cell: whole ones from ten on."""
    return value if value is None or value < 10 else round(value)
