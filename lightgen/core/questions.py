"""Prompts with questions on their pictures, whose right answers are known."""

from dataclasses import dataclass

COUNT_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question on a picture.

    Attributes:
        text: what is asked.
        answer: the right answer, such as `Yes` or `four`.
        skill: what a right answer shows: a skill of GenEval 2 or a category of DPG-Bench.
        parents: places, among the prompt's questions, of those without which this one cannot be right.
    """

    text: str
    answer: str
    skill: str
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QuestionedPrompt:
    """One prompt with the questions that judge its pictures.

    Attributes:
        prompt: the text that is drawn.
        questions: at least one.
        atom_count: how many things the prompt asks for at once, or None where nobody counted.
    """

    prompt: str
    questions: tuple[Question, ...]
    atom_count: int | None = None


def answer_key(answer: str) -> str:
    """The answer, whatever its spelling: lowercase, without blanks and full stop, counts to 20 as digits."""
    key = " ".join(answer.lower().split()).rstrip(".")
    if key in COUNT_WORDS:
        return str(COUNT_WORDS.index(key))
    return str(int(key)) if key.isascii() and key.isdigit() and len(key) < 10 else key


def count_of(answer: str) -> int | None:
    """Number that an answer says in digits, or in words up to twenty; None for any other answer."""
    key = answer_key(answer)
    return int(key) if key.isascii() and key.isdigit() and len(key) < 10 else None
