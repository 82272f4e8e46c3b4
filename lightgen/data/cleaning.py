"""Which captions are fit to draw, and why the others are not."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.data.english import is_english
from lightgen.data.text_duplicates import (
    HASHES,
    equal_twins,
    near_twins,
    signatures,
    telling_hash,
    text_hash,
    words_of,
)

# Every reason, in the order in which they are looked for; the first that holds is the one that is told.
REASONS = (
    "too many bytes",
    "empty",
    "control characters",
    "markup",
    "link",
    "email",
    "too few words",
    "too many words",
    "too few characters",
    "too many characters",
    "repeated words",
    "other language",
    "blocked",
    "held out",
    "duplicate",
    "near duplicate",
)
_BATCH = 4096

# Control characters that are no blanks, halves of surrogate pairs, and what has no meaning of its own.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ue000-\uf8ff\ufffe\uffff]")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|<!--|&(?:[a-zA-Z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,6});")
_LINK = re.compile(
    r"\b(?:https?|ftp)://|\bwww\.\w|\b[\w-]+\.(?:com|net|org|io|jpe?g|png|gif|webp|html?)\b", re.IGNORECASE
)
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,64}\.\w{2,}")
_REPEATS = 4  # the same word so often in a row is no sentence
_NO_WORDS = ("null", "none", "nan", "n/a", "undefined", "[deleted]", "[removed]", "{caption}", "{prompt}")
# Zero width but for the joiner of emoji, and overrides of direction: they hide what is read.
_UNSEEN = dict.fromkeys((0x200B, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
_NUMBER_WORDS = "one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {str(number): word for number, word in enumerate(_NUMBER_WORDS.split(), 1)}
_LEET = str.maketrans({"0": "o", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"})


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """What a caption must be to stay.

    Attributes:
        min_words, max_words: words between blanks; None = no such limit.
        min_chars, max_chars, max_bytes: characters, and bytes as UTF-8; by default what a student takes.
        language: en: nine letters of ten are Latin, and there are no fewer of the commonest English words
            than of those of ten other European languages. It is a rule of thumb: it lets pass what has none
            of either (a list of tags), and does not know every language. any: not looked at.
        markup: whether HTML tags and entities, links and e-mail addresses are a fault.
        repeated: whether a word four times in a row, or a word of more than three letters that makes up more
            than half of a caption of eight words or more, is a fault.
        duplicates: exact: of captions that differ in case, blanks and punctuation alone the first stays;
            near: also of those that share most of their wording; keep: all stay.
        min_similarity: near: from which share of common word triples on two captions are nearly the same.
            Captions that differ in a number, colour or direction are never near duplicates.
        blocked: file of words or phrases, one per line (`#` begins a comment), that no caption may hold:
            as whole words, whatever their case, accents, invisible characters and letters written as digits.
    """

    min_words: int | None = 1
    max_words: int | None = None
    min_chars: int | None = 1
    max_chars: int | None = 2000
    max_bytes: int | None = 4096
    language: Literal["en", "any"] = "any"
    markup: bool = True
    repeated: bool = True
    duplicates: Literal["exact", "near", "keep"] = "near"
    min_similarity: float = 0.8
    blocked: Path | None = None

    def check(self) -> None:
        """Raises UserError: a number out of its range."""
        limits = (self.min_words, self.max_words, self.min_chars, self.max_chars, self.max_bytes)
        if any(limit is not None and limit < 0 for limit in limits) or not 0.5 <= self.min_similarity <= 1:
            raise UserError(
                f"--cleaning: got limits {limits} and min-similarity {self.min_similarity}, "
                "allowed: whole numbers from 0, and 0.5 to 1"
            )


@dataclass(frozen=True)
class BlockList:
    """Words and phrases that no caption may hold.

    Attributes:
        phrases: by first word, as tuples of folded words.
    """

    phrases: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    @staticmethod
    def of(lines: Iterable[str]) -> "BlockList":
        """List of lines; blank ones and comments are none of it."""
        phrases: dict[str, tuple[tuple[str, ...], ...]] = {}
        for line in lines:
            words = tuple(_plain(line.partition("#")[0]).split())
            if words:
                phrases[words[0]] = (*phrases.get(words[0], ()), words)
        return BlockList(phrases)

    @staticmethod
    def read(path: Path) -> "BlockList":
        """List of a file.

        Raises:
            UserError: it cannot be read, or holds no word.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: not readable ({error}), allowed: words as UTF-8, one per line"
            ) from error
        found = BlockList.of(text.splitlines())
        if not found.phrases:
            raise UserError(f"{path}: got no words, allowed: one or more per file, one per line")
        return found

    def find(self, text: str) -> str | None:
        """The first phrase of the list that the text holds, or None."""
        if not self.phrases:
            return None
        for words in {tuple(_plain(text).split()), *_undisguised(text)}:
            for start, word in enumerate(words):
                for phrase in self.phrases.get(word, ()):
                    if words[start : start + len(phrase)] == phrase:
                        return " ".join(phrase)
        return None


@dataclass(frozen=True)
class Verdicts:
    """What became of N captions.

    Attributes:
        reasons: uint8 [N], number of the reason in REASONS plus 1; 0 = it stays.
        twins: int64 [N], the earlier caption that a duplicate repeats; its own number elsewhere.
    """

    reasons: np.ndarray
    twins: np.ndarray

    def counts(self) -> dict[str, int]:
        """Captions dropped by each reason that occurs."""
        found = np.bincount(self.reasons, minlength=len(REASONS) + 1)[1:]
        return {reason: int(count) for reason, count in zip(REASONS, found, strict=True) if count}


def judge(
    config: CleaningConfig,
    prompts: Iterable[Prompt],
    num: int,
    text: Callable[[int], str],
    blocked: BlockList,
    held_out: Collection[int],
    advance: Callable[[int], None] = lambda n: None,
) -> Verdicts:
    """What becomes of each of `num` captions, in one pass over them and about 90 bytes of memory for each.

    Args:
        config: what they must be.
        prompts: all captions, in order; one that was written from another also falls with that one, where it
            is held out.
        num: how many they are.
        text: caption of a number, to compare near duplicates.
        blocked: words they may not hold.
        held_out: `held_out_hashes` of captions that may not occur.
        advance: called with how many more are looked at.
    """
    reasons, hashes = np.zeros(num, dtype=np.uint8), np.zeros(num, dtype=np.uint64)
    near = config.duplicates == "near"
    signed = np.zeros((num if near else 0, HASHES), dtype=np.uint8)
    telling = np.zeros(num if near else 0, dtype=np.uint64)
    start, batch = 0, []

    def close() -> None:
        rows = slice(start, start + len(batch))
        if near:
            signed[rows] = signatures(batch)
            telling[rows] = [telling_hash(words) for words in batch]
        advance(len(batch))

    for number, prompt in enumerate(prompts):
        reason = fault(config, prompt.prompt, blocked)
        # a caption with a fault may be a megabyte long, and nobody compares it
        words = words_of(tidy(prompt.prompt)) if reason is None else [""]
        hashes[number] = text_hash(words)
        if reason is None and held_out:
            written = (prompt.prompt, prompt.original_prompt)
            if any(each is not None and _spelling_hash(each) in held_out for each in written):
                reason = "held out"
        reasons[number] = 0 if reason is None else REASONS.index(reason) + 1
        batch.append(words)
        if len(batch) == _BATCH:
            close()
            start, batch = start + len(batch), []
    close()
    assert start + len(batch) == num, (start, len(batch), num)

    twins = np.arange(num)
    if config.duplicates != "keep":
        rows = np.flatnonzero(reasons == 0)
        _drop(reasons, twins, rows, equal_twins(hashes, rows), "duplicate")
    if near:
        rows = np.flatnonzero(reasons == 0)
        found = near_twins(signed, telling, rows, lambda row: tidy(text(row)), config.min_similarity)
        _drop(reasons, twins, rows, found, "near duplicate")
    return Verdicts(reasons, twins)


def _drop(reasons: np.ndarray, twins: np.ndarray, rows: np.ndarray, found: np.ndarray, reason: str) -> None:
    repeats = found != rows
    reasons[rows[repeats]] = REASONS.index(reason) + 1
    twins[rows[repeats]] = found[repeats]


def held_out_hashes(captions: Iterable[str]) -> frozenset[int]:
    """Hashes by which `judge` knows captions that may not occur.

    They hold whatever the case, punctuation and invisible characters, and for numbers to twelve as digits or
    as words; they do not know paraphrases.
    """
    return frozenset(map(_spelling_hash, captions))


def _spelling_hash(text: str) -> int:
    if not text.isascii():
        text = "".join(each for each in text if unicodedata.category(each) != "Cf")
    return text_hash([_NUMBERS.get(word, word) for word in words_of(text)])


def tidy(text: str) -> str:
    """The caption with single blanks, no line breaks and nothing invisible inside, and none at its ends."""
    return " ".join(text.translate(_UNSEEN).split())


def fault(config: CleaningConfig, text: str, blocked: BlockList = BlockList()) -> str | None:
    """First reason why a caption cannot stay on its own account, or None."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if config.max_bytes is not None and size > config.max_bytes:
        return "too many bytes"
    words = text.split()
    # emoji (category So) say something, punctuation and digits alone do not
    says = any(each.isalpha() or unicodedata.category(each) == "So" for each in text)
    if not says or tidy(text).lower() in _NO_WORDS:
        return "empty"
    if _CONTROL.search(text):
        return "control characters"
    if config.markup:
        if _MARKUP.search(text):
            return "markup"
        if _EMAIL.search(text):
            return "email"
        if _LINK.search(text):
            return "link"
    for unit, count, least, most in (
        ("words", len(words), config.min_words, config.max_words),
        ("characters", len(text), config.min_chars, config.max_chars),
    ):
        if least is not None and count < least:
            return f"too few {unit}"
        if most is not None and count > most:
            return f"too many {unit}"
    if config.repeated and _is_repeated(words_of(text)):
        return "repeated words"
    if config.language == "en" and not is_english(text):
        return "other language"
    return "blocked" if blocked.find(text) else None


def _is_repeated(words: Sequence[str]) -> bool:
    run = 1
    for one, other in zip(words, words[1:], strict=False):
        run = run + 1 if one == other else 1
        if run == _REPEATS:
            return True
    most = Counter(word for word in words if len(word) > 3).most_common(1)
    return len(words) >= 8 and bool(most) and most[0][1] > len(words) / 2


def _plain(text: str) -> str:
    """Text without case, marks, invisible characters and punctuation."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    seen = [each for each in folded if not unicodedata.combining(each) and unicodedata.category(each) != "Cf"]
    return "".join(each if each.isalnum() else " " for each in seen if each != "'")


def _undisguised(text: str) -> list[tuple[str, ...]]:
    """The words of a text that has digits or signs, read as the letters that they look like."""
    folded = unicodedata.normalize("NFKD", text).casefold().translate(_LEET)
    return [tuple(_plain(folded.replace("1", letter)).split()) for letter in "il"]
