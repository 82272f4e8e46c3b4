"""What an inspection prints: the facts of each kind of artifact, in words."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact
from lightgen.core.directory import read_json_object
from lightgen.core.errors import UserError
from lightgen.data.latents import LatentShards
from lightgen.stages.inspect_sample import Sample, readable

_LISTS = ("rejected.jsonl", "skipped.jsonl")
_MAX_LINE, _MAX_LINES = 8 << 20, 1_000_000  # bytes: a line holds all the JSON of a record
_MAX_HEADER_BYTES = 100 << 20
_WIDTH = 320
_NUMBERS = re.compile(r"\d+")

Facts = list[tuple[str, str]]


def artifact_facts(artifact: Artifact) -> Facts:
    """What every artifact is: digest, config in short, parents, versions, sizes."""
    manifest, files = artifact.manifest, artifact.manifest["files"]
    size = sum(entry["bytes"] for entry in files.values())
    config = {name: value for name, value in artifact.config.items() if name != "stage"}
    facts = [
        ("kind", artifact.kind),
        ("digest", artifact.digest),
        ("made by", readable(str(artifact.config.get("stage", "unknown")), 40)),
        ("counts", ", ".join(f"{name} {count:,}" for name, count in artifact.counts.items()) or "none"),
        ("size", f"{size_text(size)} in {len(files):,} files"),
        ("config", readable(json.dumps(config, ensure_ascii=False), _WIDTH) if config else "none"),
    ]
    facts += [
        (f"parent {number}", readable(f"{each.get('name')} ({each.get('kind')}) {each.get('digest')}", 200))
        for number, each in enumerate(artifact.parents, 1)
    ]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return [
        *facts,
        ("versions", readable(versions, _WIDTH)),
        ("commit", str(manifest.get("commit") or "unknown")),
    ]


def looked_at(sample: Sample) -> str:
    """How much of a set was looked at."""
    seen = f", the pictures of {len(sample.seen):,}" if sample.seen else ""
    return f"{len(sample.told) + sample.unread.total():,} of {sample.total:,} records{seen}"


def seen_facts(sample: Sample) -> Facts:
    """Sizes, formats and what is unusual of the pictures that were looked at."""
    sizes = Counter(f"{seen.size[1]}x{seen.size[0]}" for seen in sample.seen.values())
    odd = Counter(seen.odd for seen in sample.seen.values() if seen.odd is not None)
    facts = [
        ("sizes", counted(sizes)),
        ("formats", counted(Counter(seen.suffix for seen in sample.seen.values()))),
    ]
    return [*facts, ("unusual", counted(odd))] if odd else facts


def told_facts(sample: Sample) -> Facts:
    """Captions, generators, tags, objects and columns of numbers of the records that were looked at."""
    if not sample.told:
        return []
    words, letters = (sorted(values) for values in zip(*((t.words, t.letters) for t in sample.told.values())))  # noqa: B905
    facts = [
        ("captions", f"{len({told.prompt for told in sample.told.values()}):,} that differ"),
        ("words", f"{words[0]} to {words[-1]}, median {words[len(words) // 2]}"),
        ("letters", f"{letters[0]} to {letters[-1]}, median {letters[len(letters) // 2]}"),
    ]
    for name in ("generator", "tag"):
        found = sample.named(name)
        if found:
            facts.append((f"{name}s", counted(found)))
    classes = Counter(each for told in sample.told.values() for each in told.classes)
    if classes:
        facts.append(("objects", f"{len(classes)}: {counted(classes)}"))
    for name, values in sample.columns().items():
        low, middle, high = (values[at][0] for at in (0, len(values) // 2, -1))
        facts.append((f"column {name}", f"{low:.4g} to {high:.4g}, median {middle:.4g}, in {len(values):,}"))
    return facts


def latent_facts(artifact: Artifact, shards: LatentShards) -> Facts:
    """Rows, shapes, channels and text features of latents."""
    rows: Counter[str] = Counter()
    for ranges in shards.groups():
        rows["x".join(map(str, shards.shape(ranges[0].start)))] += sum(map(len, ranges))
    facts = [
        ("rows", f"{len(shards):,}"),
        ("shapes", counted(rows) + (", mean and std" if shards.has_std else ", mean alone")),
    ]
    for name in ("latent_mean", "latent_std"):
        values = artifact.manifest.get(name)
        if isinstance(values, list) and values:
            facts.append((f"{name[7:]} by channel", " ".join(f"{value:.3g}" for value in values)[:_WIDTH]))
    features = artifact.manifest.get("text_features")
    told = "none" if features is None else readable(json.dumps(features, ensure_ascii=False), _WIDTH)
    return [*facts, ("text features", told)]


def checkpoint_facts(artifact: Artifact) -> Facts:
    """What an artifact of a checkpoint is, and the parameters of each part from the headers of its files."""
    parts: dict[str, Counter[str]] = {}
    for name in sorted(artifact.manifest["files"]):
        if name.endswith(".safetensors"):
            part = name.rpartition("/")[0] or "."
            parts.setdefault(part, Counter()).update(_parameters(artifact.path / name))
    facts = artifact_facts(artifact)
    for part, found in parts.items():
        config = read_json_object(artifact.path / part / "config.json") if _is_file(artifact, part) else None
        kind = str(
            (config or ({}, b""))[0].get("_class_name") or (config or ({}, b""))[0].get("model_type") or ""
        )
        told = f"{found.total():,} parameters ({', '.join(found)})"
        facts.append((f"part {readable(part, 60)}", f"{readable(kind, 60)}, {told}" if kind else told))
    return facts


def _is_file(artifact: Artifact, part: str) -> bool:
    return f"{part}/config.json" in artifact.manifest["files"]


def _parameters(path: Path) -> Counter[str]:
    """Parameters by dtype, from the header of a safetensors file: 8 bytes of length, then JSON.

    Raises:
        UserError: it is no such file.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        data = file.read(size) if size <= _MAX_HEADER_BYTES else b""
    found: Counter[str] = Counter()
    try:
        for name, entry in json.loads(data).items():
            if name != "__metadata__":
                count = 1
                for side in entry["shape"]:
                    count *= int(side)
                found[readable(str(entry["dtype"]), 20)] += count
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path.name}: not a whole safetensors file ({type(error).__name__})") from error
    return found


def report_facts(artifact: Artifact) -> Facts:
    """The numbers of a report."""
    found, _ = read_json_object(artifact.path / "report.json") or ({}, b"")
    facts = artifact_facts(artifact)
    for name, value in _leaves(found, ""):
        facts.append((readable(name, 60), f"{value:.4g}" if isinstance(value, float) else str(value)))
    return facts


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Numbers of a report by dotted name: scores, tasks, and those of each subject; no lists of pictures."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
        elif isinstance(value, dict) and key not in ("settings", "counts", "parents"):
            yield from _leaves(value, f"{name}.")
        elif key == "subjects" and isinstance(value, list):
            for each in value:
                if isinstance(each, dict):
                    yield from _leaves(
                        {k: each[k] for k in ("overall", "tasks") if k in each}, f"{each.get('name')}."
                    )


def left_out(folder: Path) -> Counter[str]:
    """How many lines the lists hold of what was rejected or skipped, by reason."""
    found: Counter[str] = Counter()
    for path in (folder / name for name in _LISTS if (folder / name).is_file()):
        with path.open("rb") as file:
            for _ in range(_MAX_LINES):
                line = file.readline(_MAX_LINE)
                if not line:
                    break
                try:
                    reason = json.loads(line)["reason"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    reason = "line that cannot be read"
                found[_NUMBERS.sub("N", readable(str(reason), 120))] += 1
    return found


def counted(counts: Counter[str]) -> str:
    """The most frequent of what is counted, in a line."""
    most = counts.most_common(8)
    more = f", and {len(counts) - len(most)} more" if len(counts) > len(most) else ""
    return ", ".join(f"{readable(name, 80)} {count:,}" for name, count in most) + more or "none"


def size_text(size: float) -> str:
    """Size in bytes, kB, MB, GB or TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
