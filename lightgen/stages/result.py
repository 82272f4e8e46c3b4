"""What an evaluation found of one subject."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightgen.evals.tables import ScoreTable
from lightgen.stages.fidelity import Fidelity
from lightgen.stages.image_score import MeanScore
from lightgen.stages.inputs import ImageInputs
from lightgen.stages.judge import Judged


@dataclass(frozen=True)
class Result:
    """What was found of one subject.

    Attributes:
        name, digest: of the subject.
        images: its pictures.
        judged: a finding of each, in the same order; empty where nobody judged them.
        table: the scores, where there is a judge.
        fidelity: distances to reference images, where they were measured.
        score: mean score of a scorer, where there is one.
        cost: what a picture cost.
    """

    name: str
    digest: str
    images: ImageInputs
    judged: Sequence[Judged]
    table: ScoreTable | None
    fidelity: Fidelity | None
    score: MeanScore | None
    cost: Mapping[str, Any]

    def broken(self) -> dict[str, int]:
        """How often each rule was broken."""
        return dict(Counter(rule for each in self.judged for rule in each.broken).most_common())

    def to_json(self) -> dict[str, Any]:
        """Record of a report."""
        return {
            "name": self.name,
            "num_images": len(self.images),
            "digest": self.digest,
            **(self.table.to_json() if self.table else {}),
            **({"fidelity": self.fidelity.to_json()} if self.fidelity else {}),
            **({"score": self.score.to_json()} if self.score else {}),
            "broken": self.broken(),
            "cost": dict(self.cost),
            "images": [{"key": self.images.key(i), **each.to_json()} for i, each in enumerate(self.judged)],
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """Records of the benchmark's own results."""
        for i, each in enumerate(self.judged):
            name = self.images.meta(i).get("filename", self.images.key(i))
            yield {"filename": name, **each.result}

    def by_task(self) -> dict[str, list[int]]:
        """Numbers of the pictures of each task, in the table's order, those of one prompt side by side."""
        places: dict[str, int] = {}
        for each in self.judged:
            places.setdefault(each.mark.prompt, len(places))
        found: dict[str, list[int]] = {task: [] for task in (self.table.tasks if self.table else ())}
        for i in sorted(range(len(self.judged)), key=lambda i: (places[self.judged[i].mark.prompt], i)):
            found[self.judged[i].mark.parts[0][0]].append(i)
        return {task: numbers for task, numbers in found.items() if numbers}

    def means(self) -> dict[str, tuple[float, list[int]]]:
        """Mean score and numbers of the pictures of each prompt, by what tells prompts apart."""
        found: dict[str, list[int]] = defaultdict(list)
        for i, each in enumerate(self.judged):
            found[each.mark.prompt].append(i)
        return {
            prompt: (sum(self.judged[i].mark.score for i in numbers) / len(numbers), numbers)
            for prompt, numbers in found.items()
        }

    def shown(self, most: int) -> list[int]:
        """Numbers of at most `most` pictures: the first of each task, in turn; without tasks the first."""
        if not self.judged:
            return list(range(min(most, len(self.images))))
        columns = list(self.by_task().values())
        longest = max((len(column) for column in columns), default=0)
        turns = (column[place] for place in range(longest) for column in columns if place < len(column))
        return [number for number, _ in zip(turns, range(most), strict=False)]
