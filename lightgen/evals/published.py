"""Scores that others published, each with its source, to be read beside one's own."""

from dataclasses import dataclass

_TASKS = ("single_object", "two_object", "colors", "counting", "position", "color_attr")
_LIGHTGEN = "arXiv 2503.08619"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Scores of a model as printed.

    Attributes:
        model: its name, with the resolution where the source states one.
        overall: in [0, 1].
        tasks: by the benchmark's tasks, in [0, 1]; empty where only the overall score is printed.
        source: paper and table.
    """

    model: str
    overall: float
    tasks: dict[str, float]
    source: str


def published(benchmark: str) -> tuple[Published, ...]:
    """What is known of a benchmark by its name; empty for one of our own, which nobody else measured."""
    return {"GenEval": _GENEVAL, "DPG-Bench": _DPG}.get(benchmark, ())


def _row(model: str, numbers: str, overall: float, source: str) -> Published:
    """Scores in the order single, two, colors, counting, position, color attribution, in hundredths."""
    values = [int(number) / 100 for number in numbers.split()]
    return Published(
        model=model,
        overall=overall,
        tasks=dict(zip(_TASKS, values, strict=True)) if values else {},
        source=source,
    )


_TABLES = {number: f"{_LIGHTGEN}, table {number}" for number in (1, 2, 3)}
_FLUID = "arXiv 2410.13863"
_GENEVAL = (
    _row("LightGen 0.7B, 512 px", "99 65 87 60 22 43", 0.62, _TABLES[2]),
    _row("LightGen 0.7B without DPO, 512 px", "98 58 86 37 14 28", 0.53, _TABLES[2]),
    _row("LightGen 0.7B without DPO, 100k steps, 256 px", "99 53 85 40 13 25", 0.53, _TABLES[1]),
    _row("LightGen 0.7B without DPO, 80k steps, 256 px", "98 44 85 36 8 24", 0.49, _TABLES[1]),
    _row("Fluid 369M, 256 px", "96 64 78 53 33 46", 0.62, _FLUID),
    _row("Fluid 665M, 256 px", "96 73 77 51 42 51", 0.65, _FLUID),
    _row("Fluid 1.1B, 256 px", "96 77 78 61 34 53", 0.67, _FLUID),
    _row("Fluid 3.1B, 256 px", "96 83 82 60 41 53", 0.70, _FLUID),
    _row("Fluid 10.5B, 256 px", "96 83 80 63 39 51", 0.69, _FLUID),
    _row("SD1.5 0.9B", "97 38 76 35 4 6", 0.43, _TABLES[3]),
    _row("SD1.5 0.9B, 512 px", "96 38 77 37 3 5", 0.42, _TABLES[2]),
    _row("SD2.1 0.9B", "98 51 85 44 7 17", 0.50, _TABLES[3]),
    _row("SDXL 2.6B", "98 74 85 39 15 23", 0.55, _TABLES[3]),
    _row("DALL-E 3", "96 87 83 47 43 45", 0.67, _TABLES[3]),
    _row("SD3 8B", "98 84 74 66 40 43", 0.68, _TABLES[3]),
    _row("SD3 8B, 512 px", "99 82 80 51 27 52", 0.65, _TABLES[2]),
    _row("Flux 12B", "98 81 79 74 22 45", 0.66, _TABLES[3]),
    _row("Flux 12B, 512 px", "97 71 68 76 15 43", 0.61, _TABLES[2]),
    _row("LlamaGen 0.7B, 256 px", "69 34 55 19 6 2", 0.31, _TABLES[1]),
    _row("Chameleon 7B", "", 0.39, _TABLES[3]),
    _row("SEED-X 17B", "96 65 80 31 18 14", 0.51, _TABLES[3]),
    _row("Show-o 1.3B", "95 52 82 49 11 28", 0.53, _TABLES[3]),
)
_DPG = (
    _row("SDXL 2.6B", "", 0.7465, "arXiv 2410.18013"),
    _row("SDXL 2.6B, RankDPO", "", 0.7926, "arXiv 2410.18013"),
    _row("SimpleAR 0.5B", "", 0.7966, "arXiv 2504.11455"),
    _row("NextStep-1 14B", "", 0.8528, "arXiv 2508.10711"),
)
