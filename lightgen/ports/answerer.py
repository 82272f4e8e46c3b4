"""What an answerer is asked, and what the probability of an answer is for a model that writes tokens.

Spellings: an answer may be written as given, in lowercase, Capitalised or in UPPERCASE, a count to twenty in
digits or as a word, and each of these with or without a blank before it.

Candidates: the answers that are asked for and their rivals, which are `no` beside `yes` and all counts to
twenty beside a count. They decide how much of a spelling must be seen: its first token alone where no
spelling of another candidate begins with that token, else the fewest tokens that tell it from all of them,
or all where it begins another (`four`, `fourteen`). So `Yes` is one token even where a vocabulary has it as
`Ye` and `s`, while ` 4`, whose first token is a blank in many, says nothing before its second.

The probability of an answer is the probability that what the model writes begins with such tokens of one of
its spellings. Where those of another asked answer go on from there, a text counts for the longest, so that
the probabilities of different answers never add up to more than 1. An unasked rival takes nothing away:
`fourteen` counts as `four` where only `four` is asked for.

GenEval 2 adds up the probabilities of the first tokens of `four`, `Four`, ` four`, ` Four`, `4` and ` 4`, of
the last even where that is a blank; else this is the same sum with more spellings.
Source: arXiv 2512.16853; facebookresearch/GenEval2:evaluation.py.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightgen.core.errors import UserError
from lightgen.core.questions import COUNT_WORDS, answer_key, count_of

Tokens = tuple[int, ...]
_PLACE = "{question}"
_YES_NO = ("yes", "no")


@dataclass(frozen=True, kw_only=True)
class ModelAnswererConfig:
    """Which model of this machine answers, and how it is asked.

    Attributes:
        model: local folder in the layout of transformers, or OWNER/NAME of a repository in the Hub's cache.
        prompt: what the model reads after the image; {question} stands for the question.
        batch_size: most questions per pass, each with its image.
        precision: of the model; probabilities are computed in fp32 in any case.
    """

    model: str = "Qwen/Qwen3-VL-8B-Instruct"
    prompt: str = "{question} Answer in one word."
    batch_size: int = 16
    precision: Literal["bf16", "fp32"] = "bf16"

    def check(self) -> None:
        """Raises UserError: a prompt without a place for the question, or a batch of none."""
        if self.prompt.count(_PLACE) != 1:
            raise UserError(
                f"--answerer.prompt: got {self.prompt[:80]!r}, allowed: a text with {_PLACE} in it once"
            )
        if self.batch_size < 1:
            raise UserError(f"--answerer.batch-size: got {self.batch_size}, allowed: a whole number from 1")

    def asked(self, question: str) -> str:
        """What the model reads to a question."""
        return self.prompt.replace(_PLACE, question)


def spellings(answer: str) -> tuple[str, ...]:
    """All ways to write an answer.

    Raises:
        UserError: it says nothing.
    """
    given, count = " ".join(answer.split()), count_of(answer)
    if not given:
        raise UserError("answerer: got an empty answer, allowed: a word")
    words = [given]
    if count is not None:
        words += [str(count), *COUNT_WORDS[count : count + 1]]
    cased = [each for word in words for each in (word, word.lower(), word.capitalize(), word.upper())]
    return tuple(dict.fromkeys(blank + word for word in cased for blank in ("", " ")))


def rivals(answers: Iterable[str]) -> tuple[str, ...]:
    """Keys (see `answer_key`) of candidates that are not asked for but could be answered instead."""
    keys = [answer_key(answer) for answer in answers]
    found: list[str] = []
    if any(key in _YES_NO for key in keys):
        found += _YES_NO
    if any(count_of(key) is not None for key in keys):
        found += [str(count) for count in range(len(COUNT_WORDS))]
    return tuple(key for key in found if key not in keys)


def telling_tokens(
    asked: Mapping[str, Sequence[Tokens]], others: Mapping[str, Sequence[Tokens]]
) -> dict[Tokens, str]:
    """Key of the asked answer that each sequence of tokens says, by the rule above.

    Args:
        asked: tokens of the spellings of each asked answer, by its key; none of them empty.
        others: the same of its rivals.

    Raises:
        UserError: two answers have a spelling of the same tokens.
    """
    begun: defaultdict[Tokens, set[str]] = defaultdict(set)
    for candidates in (asked, others):
        for key, sequences in candidates.items():
            for tokens in sequences:
                for length in range(1, len(tokens) + 1):
                    begun[tokens[:length]].add(key)
    found: dict[Tokens, str] = {}
    for key, sequences in asked.items():
        for tokens in sequences:
            beginnings = (tokens[:length] for length in range(1, len(tokens) + 1))
            telling = next((each for each in beginnings if len(begun[each]) == 1), tokens)
            if found.setdefault(telling, key) != key:
                raise UserError(
                    f"answers {found[telling]!r} and {key!r}: got the same tokens for both, allowed: answers "
                    "that the model's vocabulary tells apart"
                )
    return found


def add_up(telling: Mapping[Tokens, str], probability: Mapping[Tokens, float]) -> dict[str, float]:
    """Probability of each answer from those that a text begins with the tokens; 0 where none is given."""
    found = dict.fromkeys(telling.values(), 0.0)
    for tokens, key in telling.items():
        value = probability.get(tokens, 0.0)
        found[key] += value
        # what goes on to a longer one has been counted for the longest that it begins with
        shorter = next((tokens[:n] for n in range(len(tokens) - 1, 0, -1) if tokens[:n] in telling), None)
        if shorter is not None:
            found[telling[shorter]] -= value
    return {key: min(1.0, max(0.0, value)) for key, value in found.items()}
