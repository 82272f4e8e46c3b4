"""Captions that say the same as an earlier one, to the letter or nearly so, in memory bounded per caption.

Source: A. Broder, On the resemblance and containment of documents, 1997 (MinHash); Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3 (bands).
"""

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence

import numpy as np

HASHES, BAND = 64, 4
SHINGLE = 3

_WORD = re.compile(r"\w+")
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15
# Odd factors that make the place of a word in a shingle count.
_PLACES = tuple(np.uint64(((2 * i + 1) * _GOLDEN | 1) % 2**64) for i in range(SHINGLE))
_SALTS = tuple(np.uint64((i + 1) * _GOLDEN % 2**64) for i in range(HASHES))
# Captions that differ in these ask for different pictures, however much else they share.
_TELLING_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve dozen pair couple no not without "
    "red orange yellow green blue purple pink brown black white gray grey turquoise gold golden silver beige "
    "maroon navy teal lavender crimson cyan magenta violet "
    "left right above below over under beneath behind front inside outside between top bottom"
)
_TELLING = frozenset(_TELLING_WORDS.split())


def words_of(text: str) -> list[str]:
    """Words of a text without case and punctuation; one with neither letters nor digits is one word."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(folded) or [folded.strip()]


def text_hash(words: Sequence[str]) -> int:
    """64-bit hash of a text's words: equal where texts differ in case, spaces and punctuation alone."""
    joined = " ".join(words).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")


def telling_hash(words: Sequence[str]) -> int:
    """64-bit hash of the numbers, colours and places that a text names, in their order."""
    return text_hash([word for word in words if word in _TELLING or word.isdecimal()])


def signatures(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Lowest byte of each of HASHES MinHashes, uint8 [N, HASHES], of the word triples of N texts.

    Two texts agree in a byte with a probability of J + (1 - J) / 256, J being the share of triples (of those
    in either) that are in both.
    """
    if not texts:
        return np.zeros((0, HASHES), dtype=np.uint8)
    # two empty words at the end: every text has as many triples as words, and its end counts
    lengths = np.array([len(words) + SHINGLE - 1 for words in texts])
    flat = [zlib.crc32(w.encode("utf-8", "surrogatepass")) for words in texts for w in (*words, "", "")]
    hashed = _mix(np.array(flat, dtype=np.uint64))
    shingles = np.zeros(len(flat) - SHINGLE + 1, dtype=np.uint64)
    for place, factor in enumerate(_PLACES):
        shingles += hashed[place : place + len(shingles)] * factor
    ends = np.cumsum(lengths)
    inside = np.ones(len(flat), dtype=bool)
    for back in range(1, SHINGLE):  # triples that reach into the next text
        inside[ends - back] = False
    shingles = shingles[inside[: len(shingles)]]
    starts = np.concatenate([[0], np.cumsum(lengths - (SHINGLE - 1))[:-1]])
    found = np.empty((len(texts), HASHES), dtype=np.uint8)
    for number, salt in enumerate(_SALTS):
        smallest = np.minimum.reduceat(_mix(shingles ^ salt), starts)
        found[:, number] = (smallest & np.uint64(255)).astype(np.uint8)
    return found


def similarity(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of the word triples of either text that are in both, 0 to 1."""
    first, second = _triples(one), _triples(other)
    return len(first & second) / len(first | second)


def equal_twins(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Earliest row with the same hash for each of the rows int64 [M], ascending, of hashes uint64 [N].

    A row that is the first of its kind is its own twin.
    """
    twins = rows.copy()
    if len(rows):
        order, begins = _runs(hashes[rows])
        twins[order] = rows[order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]]
    return twins


def near_twins(
    signed: np.ndarray,
    telling: np.ndarray,
    rows: np.ndarray,
    text: Callable[[int], str],
    min_similarity: float,
) -> np.ndarray:
    """An earlier row that says nearly the same for each of the rows int64 [M], ascending; itself where none.

    Candidates share BAND bytes of their signature and all telling words; each pair is then compared exactly.
    A pair of similarity J is found with a probability of 1 - (1 - J**4)**16 or more: 0.9998 at 0.8.

    Args:
        signed: signatures uint8 [N, HASHES].
        telling: `telling_hash` uint64 [N].
        rows: those to compare.
        text: the text of a row.
        min_similarity: from which share of common word triples on two are nearly the same.
    """
    twins = rows.copy()
    for start in range(0, HASHES, BAND):
        left = np.flatnonzero(twins == rows)
        if len(left) < 2:
            break
        # rows that have found their twin still stand for later ones, so all of them are sorted
        bytes4 = np.ascontiguousarray(signed[rows, start : start + BAND]).view(np.uint32)[:, 0]
        order, begins = _runs(_mix(telling[rows] ^ _mix(bytes4.astype(np.uint64) + _SALTS[start])))
        firsts = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
        before = np.concatenate([order[:1], order[:-1]])
        for earlier in (firsts, before):
            wanted = ~begins & (twins[order] == rows[order])
            for later, candidate in zip(order[wanted], earlier[wanted], strict=True):
                agree = int((signed[rows[later]] == signed[rows[candidate]]).sum())
                # four standard deviations below: what chance alone may hide is compared too
                if agree < HASHES * min_similarity - 2 * HASHES**0.5:
                    continue
                texts = (text(int(rows[each])) for each in (later, candidate))
                if similarity(*map(words_of, texts)) >= min_similarity:
                    twins[later] = rows[candidate]
    return twins


def _triples(words: Sequence[str]) -> set[tuple[str, ...]]:
    padded = [*words, "", ""]
    return {tuple(padded[i : i + SHINGLE]) for i in range(len(words))}


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Order int64 [M] that sorts the values, equal ones by place; bool [M], where a new value begins)."""
    order = np.argsort(values, kind="stable")
    values = values[order]
    return order, np.concatenate([[True], values[1:] != values[:-1]])


def _mix(values: np.ndarray) -> np.ndarray:
    """Well-mixed uint64 of uint64 values: the finaliser of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * _FACTORS[0]
    values = (values ^ (values >> np.uint64(27))) * _FACTORS[1]
    return values ^ (values >> np.uint64(31))
