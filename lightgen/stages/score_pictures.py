"""Pictures on the page of an evaluation: those won and lost, and all by task, with why they are wrong."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from lightgen.evals.contact_sheet import fitting_thumbnails
from lightgen.evals.report import Picture, Report
from lightgen.evals.tables import Score
from lightgen.stages.judge import Judged
from lightgen.stages.result import Result

_MAX_REASONS = 12
_MAX_WON = 12
_FIRST = 24
# Base64 makes four bytes of three, and captions come beside it: 15 MB in all.
_PICTURE_BYTES = 9_500_000


class Thumbnails:
    """Small pictures of all results, within the weight of a page."""

    def __init__(self, results: Sequence[Result], most: int) -> None:
        each = most // max(1, len(results))
        self._numbers = [(result, i) for result in results for i in result.shown(each)]
        made = fitting_thumbnails(
            lambda: (result.images[i].image for result, i in self._numbers), _PICTURE_BYTES
        )
        self._found = {(result.name, i): data for (result, i), data in zip(self._numbers, made, strict=False)}

    def picture(self, result: Result, i: int, caption: str | None = None) -> Picture | None:
        """Picture i of a result as the page shows it, or None where it is none of those."""
        data = self._found.get((result.name, i))
        if data is None:
            return None
        if not result.judged:
            return Picture(data, result.images.meta(i)["prompt"])
        judged = result.judged[i]
        return Picture(data, judged.prompt if caption is None else caption, judged.correct)


def add_won_and_lost(page: Report, shown: Thumbnails, one: Result, other: Result) -> None:
    """Add the prompts whose pictures changed the most from one run to the other, either way."""
    means = [result.means() for result in (one, other)]
    gains = {prompt: means[1][prompt][0] - means[0][prompt][0] for prompt in means[0]}
    ordered = sorted(gains, key=lambda prompt: gains[prompt])  # stable: ties in order of the prompts
    won = [prompt for prompt in reversed(ordered) if gains[prompt] > 0]
    lost = [prompt for prompt in ordered if gains[prompt] < 0]
    page.section(
        f"Won and lost: {other.name} against {one.name}",
        f"{len(won)} prompts score higher, {len(lost)} lower, {len(gains) - len(won) - len(lost)} the same. "
        f"Pictures of {one.name} come first, then those of {other.name}.",
    )
    for title, prompts in (("Won", won[:_MAX_WON]), ("Lost", lost[:_MAX_WON])):
        pictures = [
            picture
            for prompt in prompts
            for result, mean in ((one, means[0]), (other, means[1]))
            for i in mean[prompt][1]
            if (picture := shown.picture(result, i, f"{result.name}: {result.judged[i].prompt}"))
        ]
        if pictures:
            columns = max(2, sum(len(mean[prompts[0]][1]) for mean in means))
            page.pictures(
                pictures, f"{title}: the largest changes", columns, folded=f"{title} ({len(prompts)})"
            )


def add_pictures(page: Report, shown: Thumbnails, result: Result) -> None:
    """Add the section with the first pictures, why pictures are wrong, and all of them, task by task."""
    num, wrong = len(result.judged), [each for each in result.judged if not each.correct]
    page.section(f"Pictures of {result.name}", f"{num - len(wrong):,} of {num:,} are right." if num else "")
    first = [picture for i in result.shown(_FIRST) if (picture := shown.picture(result, i))]
    if first:
        page.pictures(first, "The first of each task, not chosen", columns=8)
    if wrong:
        _add_reasons(page, result, wrong)
    if len(first) == len(result.images):
        return
    means = result.means()
    per_prompt = max((len(numbers) for _, numbers in means.values()), default=1)
    for task, numbers in result.by_task().items():
        pictures = [picture for i in numbers if (picture := shown.picture(result, i))]
        if pictures and result.table is not None:
            page.pictures(
                pictures,
                f"{len(pictures)} of {len(numbers)}, in order, not chosen",
                columns=per_prompt * max(1, 8 // per_prompt),
                folded=f"{task}: {score_text(result.table.tasks.get(task))}",
            )


def _add_reasons(page: Report, result: Result, wrong: Sequence[Judged]) -> None:
    """Add the tables of what is wrong, by task, and of the first wrong pictures."""
    tasks = list(result.by_task())
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for each in wrong:
        counts[each.mark.parts[0][0]].update(each.broken)
    page.table(
        ["what is wrong", "times", *tasks],
        [[rule, times, *(counts[task][rule] for task in tasks)] for rule, times in result.broken().items()],
        "What went wrong, by task",
    )
    page.table(
        ["prompt", "reason"],
        [[each.prompt, each.reason.replace("\n", "; ")] for each in wrong[:_MAX_REASONS]],
        f"The first of {len(wrong):,} wrong pictures",
    )


def score_text(score: Score | None) -> str | None:
    """A score with its interval, in words."""
    return None if score is None else f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
