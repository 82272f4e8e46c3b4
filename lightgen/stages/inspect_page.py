"""The page of an inspection: samples, extremes, twins, a map of what is there, and what was left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightgen.core.errors import UserError
from lightgen.data.duplicates import hash_duplicates
from lightgen.data.images import CorruptRecord
from lightgen.evals.bars import Bar
from lightgen.evals.contact_sheet import nearest_pairs, side_by_side, thumbnail
from lightgen.evals.report import Fact, Picture, Report
from lightgen.evals.scatter import principal_plane
from lightgen.stages.inputs import ImageInputs
from lightgen.stages.inspect_sample import Embedded, Sample

_EXTREMES, _COLUMNS = 6, 6
_TWINS, _TWIN_BITS = 12, 4
_MOST_ROWS = 12
_NO_SCORE = ("seed", "width", "height", "original_width", "original_height", "index", "id", "source_index")
_FIRST = ("score", "verdict_score", "clip_score", "pick_score", "hps_v2", "aesthetic")
_CUT = 160


@dataclass(frozen=True)
class Subject:
    """What a page is about.

    Attributes:
        name: of the directory.
        kind: what it is, in words.
        facts: what is printed of it too, as (what, value).
        left_out: skipped or rejected, by reason.
        settings: how it was made, by title.
    """

    name: str
    kind: str
    facts: Sequence[tuple[str, str]]
    left_out: Mapping[str, int]
    settings: Mapping[str, Mapping[str, Any]]


def images_page(
    subject: Subject, inputs: ImageInputs, sample: Sample, embedded: Embedded | None, samples: int
) -> str:
    """HTML of the contact sheet of images."""
    page = _begun(subject, sample, "image", embedded)
    page.section("Random samples", "Drawn by the seed, not chosen.")
    shown = [i for i in sample.told if i in sample.seen][:samples]
    pictures = [each for i in shown if (each := _picture(inputs, i, sample.told[i].prompt)) is not None]
    page.pictures(pictures, f"{len(pictures)} of {sample.total:,} images")
    _add_extremes(page, inputs, sample)
    if embedded is not None:
        _add_twins(page, inputs, embedded)
        groups = _groups(sample, embedded.ids)
        _add_map(page, embedded, groups, "images")
    _add_captions(page, sample)
    _finish(page, subject)
    return page.html()


def captions_page(
    subject: Subject,
    sample: Sample,
    embedded: Embedded | None,
    samples: int,
    channels: Sequence[tuple[float, float]] = (),
) -> str:
    """HTML of the contact sheet of what has captions alone; channels: (mean, std) of latents, by channel."""
    page = _begun(subject, sample, "row" if "latents" in subject.kind else "prompt", embedded)
    page.section("Random samples", "Drawn by the seed, not chosen.")
    rows = [[_cut(told.prompt), told.words] for told in list(sample.told.values())[:samples]]
    page.table(["caption", "words"], rows, f"{len(rows)} of {sample.total:,}")
    if channels:
        page.section("Channels")
        page.table(
            ["channel", "mean", "std"],
            [[str(number), mean, std] for number, (mean, std) in enumerate(channels)],
            "Mean and standard deviation of each channel of the latents",
        )
    if embedded is not None:
        place = embedded.ids
        first = {sample.told[i].prompt: row for row, i in reversed([*enumerate(place)])}
        rows = sorted(first.values())  # equal captions are counted above, and would fill the list
        pairs = [(rows[a], rows[b], cosine) for a, b, cosine in nearest_pairs(embedded.rows[rows], _TWINS)]
        page.section("Nearest captions")
        page.table(
            ["caption", "its nearest", "cosine"],
            [[*(_cut(sample.told[place[each]].prompt) for each in pair[:2]), pair[2]] for pair in pairs],
            f"The nearest pairs of {len(rows):,} captions that differ, each in one pair at most",
        )
        _add_map(page, embedded, _groups(sample, place), "captions")
    _add_captions(page, sample)
    _finish(page, subject)
    return page.html()


def _begun(subject: Subject, sample: Sample, noun: str, embedded: Embedded | None) -> Report:
    seen = f", and the pictures of {len(sample.seen):,}" if sample.seen else ""
    looked = f"Looked at {len(sample.told):,} of {sample.total:,} records{seen}; numbers are of these."
    page = Report(subject.name, f"{subject.kind}\n\n{looked}")
    captions = len({told.prompt for told in sample.told.values()})
    facts = [Fact(f"{sample.total:,}", f"{noun}s"), Fact(f"{captions:,}", "captions", "that differ")]
    if embedded is not None:
        found = embedded.diversity
        facts.append(Fact(f"{found.vendi:.1f}", "Vendi score", f"of {found.num:,} {noun}s"))
        facts.append(Fact(f"{found.mean_distance:.3f}", "mean distance", "1 - cosine, of all pairs"))
    if subject.left_out:
        facts.append(Fact(f"{sum(subject.left_out.values()):,}", "left out", "see below"))
    page.facts(facts)
    return page


def _add_extremes(page: Report, inputs: ImageInputs, sample: Sample) -> None:
    columns = {name: values for name, values in sample.columns().items() if values[0][0] < values[-1][0]}
    scores = [name for name in columns if name not in _NO_SCORE]
    scores.sort(key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    if not scores:
        return
    page.section("Lowest and highest", f"Of each column of numbers, of {len(sample.told):,} records.")
    for name in scores[:_COLUMNS]:
        values = columns[name]
        most = min(_EXTREMES, len(values) // 2)
        for word, chosen in (("Lowest", values[:most]), ("Highest", values[::-1][:most])):
            pictures = [_picture(inputs, i, f"{value:.4g} · {sample.told[i].prompt}") for value, i in chosen]
            page.pictures([each for each in pictures if each is not None], f"{word} {name}")
    if len(scores) > _COLUMNS:
        page.text(f"Not shown: {', '.join(scores[_COLUMNS:])}.")


def _add_twins(page: Report, inputs: ImageInputs, embedded: Embedded) -> None:
    assert embedded.hashes is not None
    stands = hash_duplicates(embedded.hashes, _TWIN_BITS)
    twins = np.flatnonzero(stands != np.arange(len(stands)))
    page.section(
        "Nearest twins",
        f"Of {len(stands):,} images, {len(twins):,} have an earlier twin by perceptual hash, that is, within "
        f"{_TWIN_BITS} of 64 bits. Below, twins by hash come first, then the nearest pairs by embedding.",
    )
    pairs = [(int(stands[row]), int(row), "hash") for row in twins[: _TWINS // 2]]
    taken = {pair[:2] for pair in pairs}
    for first, second, cosine in nearest_pairs(embedded.rows, _TWINS):
        if (first, second) not in taken and len(pairs) < _TWINS:
            pairs.append((first, second, f"cosine {cosine:.3f}"))
    pictures = []
    for first, second, why in pairs:
        ids = embedded.ids[first], embedded.ids[second]
        try:
            both = side_by_side(inputs[ids[0]].image, inputs[ids[1]].image)
        except CorruptRecord:
            continue
        pictures.append(Picture(both, _cut(f"{why} · {inputs.key(ids[0])} and {inputs.key(ids[1])}")))
    page.pictures(pictures, "Pairs, the earlier image on the left", columns=4)


def _add_map(page: Report, embedded: Embedded, groups: Mapping[str, list[int]], noun: str) -> None:
    places, share = principal_plane(embedded.rows)
    points = {name: [(float(x), float(y)) for x, y in places[rows]] for name, rows in groups.items()}
    page.section("Diversity")
    page.scatter(
        points,
        f"{len(places):,} {noun} on the plane of the two main directions of their embeddings, which shows "
        f"{share:.0%} of the variance: far points differ, near ones need not be alike.",
    )
    names = {  # no coverage: cells of the very rows that are looked at are never empty
        "vendi": "Vendi score (as how many with nothing in common)",
        "vendi_inf": "Vendi score of infinite order (the largest crowd alone)",
        "mean_distance": "mean distance (1 - cosine)",
        "entropy": "entropy of the cells (1: all hold as many)",
        "effective_cells": "effective cells",
    }
    found = embedded.diversity.to_json()
    rows = [[label, float(found[name])] for name, label in names.items() if found[name] is not None]
    cells = f", with {found['num_cells']} cells of k-means" if found["num_cells"] else ""
    page.table(
        ["number", "value"], rows, f"Of {found['num']:,} {noun}{cells}; to be compared at equal numbers"
    )


def _add_captions(page: Report, sample: Sample) -> None:
    words = sorted(told.words for told in sample.told.values())
    if not words:
        return
    page.section("Captions and numbers")
    edges = (1, 4, 8, 16, 32, 64, 128, 256)
    counts: Counter[int] = Counter(sum(count >= edge for edge in edges) for count in words)
    names = [
        "none",
        *(
            f"{low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high - 1}"
            for low, high in zip(edges, edges[1:], strict=False)
        ),
        "256+",
    ]
    bars = [Bar(name, counts[number]) for number, name in enumerate(names) if counts[number]]
    page.bars({"captions": bars}, "Captions by their number of words")
    columns = sample.columns()
    if columns:
        rows = [
            [name, len(values), values[0][0], values[len(values) // 2][0], values[-1][0]]
            for name, values in columns.items()
        ]
        page.table(["column", "records", "lowest", "median", "highest"], rows, "Numbers in the records' JSON")
    for name in ("tag", "generator"):
        found = sample.named(name).most_common(_MOST_ROWS)
        if found:
            page.table([name, "records"], [list(each) for each in found], f"By {name}")
    classes = Counter(each for told in sample.told.values() for each in told.classes)
    if classes:
        rows = [list(each) for each in classes.most_common(_MOST_ROWS)]
        page.table(["object", "times asked for"], rows, f"The most frequent of {len(classes)} objects")


def _finish(page: Report, subject: Subject) -> None:
    if subject.left_out:
        page.section("Left out")
        ordered = sorted(subject.left_out.items(), key=lambda each: -each[1])
        rows = [[_cut(reason), count] for reason, count in ordered[: 2 * _MOST_ROWS]]
        page.table(["reason", "times"], rows, "Skipped or rejected, by reason")
    page.section("How it was made")
    page.table(["what", "value"], [list(each) for each in subject.facts], "As `lightgen inspect` prints it")
    for title, values in subject.settings.items():
        if values:
            page.settings(title, values)


def _picture(inputs: ImageInputs, i: int, caption: str) -> Picture | None:
    """Thumbnail of a record; None where it cannot be decoded, which the numbers tell."""
    try:
        return Picture(thumbnail(inputs[i].image), _cut(caption))
    except (CorruptRecord, UserError):
        return None


def _groups(sample: Sample, ids: Sequence[int]) -> dict[str, list[int]]:
    """Rows by tag, else by generator, where there are several; the rarest together."""
    for name in ("tag", "generator"):
        found = Counter(sample.told[i].names.get(name, "other") for i in ids if i in sample.told)
        if len(found) > 1:
            named = [each for each, _ in found.most_common(6 if len(found) <= 6 else 5)]
            groups: dict[str, list[int]] = {each: [] for each in named}
            for row, i in enumerate(ids):
                group = sample.told[i].names.get(name, "other") if i in sample.told else "other"
                groups.setdefault(group if group in named else "other", []).append(row)
            return {each: rows for each, rows in groups.items() if rows}
    return {"all": list(range(len(ids)))}


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"
