"""What a language model wrote, made a caption; or why it is none."""

import re
from collections import Counter

from lightgen.core.prompt import COLORS, Prompt
from lightgen.data.cleaning import tidy
from lightgen.data.text_duplicates import words_of

# Why the caption stays that the model was to rewrite.
FALLBACKS = ("empty answer", "refused", "too long", "lost content")

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_LEAD = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|absolutely|here(?:'s|\u2019s| is| are))\b[^:\n]{0,160}:\s*"
    r"|^(?:the |a )?(?:detailed |expanded |rewritten |image )*(?:caption|description|prompt)\s*:\s*",
    re.IGNORECASE,
)
_SHOWS = re.compile(
    r"^(?:in )?(?:this|the) (?:image|picture|photo|photograph|scene) "
    r"(?:shows|depicts|features|captures|displays|presents|portrays|is of)\s+",
    re.IGNORECASE,
)
_AFTER = re.compile(r"^(?:let me know|i hope|note:|would you like|feel free|\(note)", re.IGNORECASE)
_REFUSED = re.compile(
    r"^(?:i['\u2019]?m sorry|sorry|i can(?:no|['\u2019])t|i am (?:sorry|unable)|as an ai)\b", re.IGNORECASE
)
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb", "`": "`"}
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Words of a checked caption that an answer may leave out: they ask for nothing.
_FREE_WORDS = (
    "a an the of in on at with and or is are there photo picture image photograph to side just directly it "
    "them by under during after from seen view one pair head pairs heads together"
)
_FREE = frozenset(_FREE_WORDS.split())


def tidy_answer(answer: str) -> str:
    """The answer as one line, without thoughts, greetings, marks of markdown and quotes around it."""
    lines = [line.strip() for line in _THOUGHT.sub("", answer).splitlines()]
    lines = [line.strip("*_#> ") for line in lines if line.strip("*_#>-= ")]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    while len(lines) > 1 and _AFTER.match(lines[-1]):
        lines.pop()
    text = _LEAD.sub("", tidy(" ".join(lines)).replace("**", ""), count=1)
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    shown = _SHOWS.sub("", text, count=1)
    return shown if shown == text or not shown else shown[0].upper() + shown[1:]


def caption_of_answer(
    original: Prompt, answer: str, max_chars: int | None, max_bytes: int | None
) -> tuple[str, str | None]:
    """(Caption, None) of an answer that expands a caption, or (the original's text, one of FALLBACKS).

    A number or colour of the original must come again as often; where the original says what its picture must
    show, so must every word that asks for something.
    """
    text, reason = description_of_answer(answer, max_chars, max_bytes)
    if reason is None and not _keeps(original, text):
        reason = "lost content"
    return (original.prompt, reason) if reason else (text, None)


def description_of_answer(
    answer: str, max_chars: int | None, max_bytes: int | None
) -> tuple[str, str | None]:
    """(Caption, None) of an answer that describes an image, or ("", one of FALLBACKS)."""
    text = tidy_answer(answer)
    if not any(each.isalnum() for each in text):
        return "", "empty answer"
    if _REFUSED.match(text):
        return "", "refused"
    size = len(text.encode("utf-8", "surrogatepass"))
    if (max_chars is not None and len(text) > max_chars) or (max_bytes is not None and size > max_bytes):
        return "", "too long"
    return text, None


def _keeps(original: Prompt, text: str) -> bool:
    said, found = Counter(words_of(original.prompt)), Counter(words_of(text))
    wanted = [word for word in said if word in _NUMBERS or word in COLORS or word.isdecimal()]
    if any(found[word] < said[word] for word in wanted):
        return False
    return not original.include or all(word in found for word in said if word not in _FREE)
