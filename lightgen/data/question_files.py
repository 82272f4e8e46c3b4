"""Files of prompts with questions on their pictures: GenEval 2's JSON lines and DPG-Bench's table."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.core.questions import Question, QuestionedPrompt

MAX_FILE_BYTES = 64 << 20
MAX_PROMPTS = 100_000
MAX_QUESTIONS = 256  # of one prompt, and the most atoms that it may have
MAX_CHARS = 8192  # of a prompt, question, answer or skill

_BOM = "\ufeff"
_EXAMPLE = (
    '{"prompt": "two cats", "vqa_list": [["How many cats are in the image?", "two"]], "skills": ["count"]}'
)
_COLUMNS = (
    *("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language"),
)


def read_questions(path: Path) -> list[QuestionedPrompt]:
    """Prompts of a file of either kind, told apart by its content; in order.

    Raises:
        UserError: as `question_kind`, `read_geneval2` and `read_dpg`.
    """
    return read_geneval2(path) if question_kind(path) == "geneval2" else read_dpg(path)


def question_kind(path: Path) -> Literal["geneval2", "dpg"]:
    """Whether a file holds GenEval 2's JSON lines or DPG-Bench's table, by how it begins.

    Raises:
        UserError: it cannot be read, is too large, or begins like neither.
    """
    begins = _text(path).lstrip()[:4096]
    if begins.startswith("{"):
        return "geneval2"
    first = begins.splitlines()[0] if begins else ""
    if {"item_id", "question_natural_language"} <= {each.strip(' "') for each in first.split(",")}:
        return "dpg"
    raise UserError(
        f"{path.name}: begins with {first[:60]!r}, allowed: GenEval 2's JSON lines, or DPG-Bench's table "
        f"with the columns {', '.join(_COLUMNS)}"
    )


def read_geneval2(path: Path) -> list[QuestionedPrompt]:
    """Prompts of a file of JSON lines as GenEval 2 has them, in order; blank lines are skipped.

    A prompt that comes again with the same questions is taken once.

    Raises:
        UserError: the file cannot be read, is too large or holds no prompt; a line (named by its number) is
            not one, or comes again with other questions.
    Source: arXiv 2512.16853; facebookresearch/GenEval2:geneval2_data.jsonl.
    """
    found = _Prompts(path)
    # only "\n" ends a line: str.splitlines would also break at U+2028 and its like
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                found.add(number, _geneval2_prompt(line))
            except UserError as error:
                raise UserError(f"{path.name}, line {number}: {error}") from error
    return found.all()


def read_dpg(path: Path) -> list[QuestionedPrompt]:
    """Prompts of DPG-Bench's table, in the order of their first rows; each question's right answer is `yes`.

    A question's skill is its category of the first level; its parents are those of `dependency`. The first
    row counts like any other: DPG-Bench's own script leaves it out, and its item with it. An item that comes
    again under another name with the same questions is taken once.

    Raises:
        UserError: the file cannot be read, is too large, is no such table or holds no row; or a row (named by
            its line) lacks something, depends on a proposition that its item lacks, or contradicts another.
    Source: arXiv 2403.05135; TencentQQGYLab/ELLA:dpg_bench/compute_dpg_bench.py @025f650, issue 61.
    """
    items: dict[str, list[tuple[int, Mapping[str, str]]]] = {}
    for number, row in _rows(path):
        rows = items.setdefault(row["item_id"], [])
        if rows and rows[0][1]["text"] != row["text"]:
            raise UserError(
                f"{path.name}, line {number}: item {row['item_id'][:60]!r} has another text than on line "
                f"{rows[0][0]}, allowed: one text per item"
            )
        rows.append((number, row))
    found = _Prompts(path)
    for rows in items.values():
        prompt = _dpg_prompt(path, rows)
        try:
            found.add(rows[0][0], prompt)
        except UserError as error:
            raise UserError(f"{path.name}, line {rows[0][0]}: {error}") from error
    return found.all()


def write_geneval2(path: Path, prompts: Iterable[QuestionedPrompt]) -> int:
    """File of JSON lines as GenEval 2 has them, whole or not at all, and how many prompts.

    Raises:
        UserError: there are no prompts, or a question has parents, for which the format has no place.
    """
    count = 0
    with whole_file(path) as temporary, temporary.open("wb") as file:
        for each in prompts:
            if any(question.parents for question in each.questions):
                raise UserError(
                    f"{path.name}: got questions of {each.prompt[:60]!r} that depend on others, allowed: "
                    "none that do, as GenEval 2 has no place for it"
                )
            record: dict[str, Any] = {"prompt": each.prompt}
            if each.atom_count is not None:
                record["atom_count"] = each.atom_count
            record["vqa_list"] = [[question.text, question.answer] for question in each.questions]
            record["skills"] = [question.skill for question in each.questions]
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            count += 1
        if not count:
            raise UserError(f"{path.name}: got no prompts to write, allowed: at least one")
    return count


class _Prompts:
    """Prompts of a file in order, each once."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._found: dict[str, tuple[int, QuestionedPrompt]] = {}

    def add(self, line: int, prompt: QuestionedPrompt) -> None:
        """Take a prompt of a line.

        Raises:
            UserError: it came before with other questions, or there are too many.
        """
        before, first = self._found.setdefault(prompt.prompt, (line, prompt))
        if first != prompt:
            raise UserError(
                f"prompt {prompt.prompt[:60]!r} has other questions than on line {before}, allowed: each "
                "prompt once"
            )
        if len(self._found) > MAX_PROMPTS:
            raise UserError(f"got more than {MAX_PROMPTS} prompts, allowed: {MAX_PROMPTS}")

    def all(self) -> list[QuestionedPrompt]:
        """All of them.

        Raises:
            UserError: there are none.
        """
        if not self._found:
            raise UserError(f"{self._name}: got no prompts, allowed: lines such as {_EXAMPLE}")
        return [prompt for _, prompt in self._found.values()]


def _text(path: Path) -> str:
    """Text of a whole file, without a byte order mark."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        allowed = "a file of GenEval 2 or DPG-Bench"
        raise UserError(f"{path}: not readable ({error.strerror}), allowed: {allowed}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path.name}: got more than {MAX_FILE_BYTES} bytes, allowed: {MAX_FILE_BYTES}")
    try:
        return data.decode().removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path.name}, line {line}: not UTF-8 text at byte {error.start + 1}, allowed: UTF-8"
        ) from error


def _geneval2_prompt(line: str) -> QuestionedPrompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"got {line.strip()[:60]!r}, allowed: JSON such as {_EXAMPLE}") from error
    if not isinstance(record, dict):
        raise UserError(f"got {line.strip()[:60]!r}, allowed: JSON such as {_EXAMPLE}")
    asked, skills, atoms = record.get("vqa_list"), record.get("skills"), record.get("atom_count")
    if not isinstance(asked, list) or not 1 <= len(asked) <= MAX_QUESTIONS:
        got = f"{len(asked)} questions" if isinstance(asked, list) else repr(asked)[:60]
        raise UserError(f"vqa_list: got {got}, allowed: a list of 1 to {MAX_QUESTIONS}")
    if not isinstance(skills, list) or len(skills) != len(asked):
        got = f"{len(skills)} skills" if isinstance(skills, list) else repr(skills)[:60]
        raise UserError(f"skills: got {got}, allowed: one for each of {len(asked)} questions")
    if atoms is not None and (type(atoms) is not int or not 1 <= atoms <= MAX_QUESTIONS):
        raise UserError(f"atom_count: got {repr(atoms)[:60]}, allowed: 1 to {MAX_QUESTIONS}")
    for pair in asked:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"vqa_list: got {repr(pair)[:60]}, allowed: pairs of a question and its answer")
    questions = tuple(
        Question(text=_said("question", q), answer=_said("answer", a), skill=_said("skill", skill))
        for (q, a), skill in zip(asked, skills, strict=True)
    )
    return QuestionedPrompt(
        prompt=_said("prompt", record.get("prompt")), questions=questions, atom_count=atoms
    )


def _said(what: str, value: Any) -> str:  # noqa: ANN401  (any JSON)
    """The value, if it is a text that says something."""
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_CHARS:
        got = f"{len(value)} letters" if isinstance(value, str) and value.strip() else repr(value)[:60]
        raise UserError(f"{what}: got {got}, allowed: a text of up to {MAX_CHARS} letters")
    if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value):
        raise UserError(f"{what}: got NUL or half a letter (a lone surrogate), allowed: whole letters")
    return value


def _rows(path: Path) -> Iterable[tuple[int, Mapping[str, str]]]:
    """(Line that it begins on, columns by name) of each row of DPG-Bench's table."""
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    begins = 1
    try:
        names = [name.strip() for name in next(lines, [])]
        missing = [name for name in _COLUMNS if name not in names]
        if missing:
            raise UserError(f"no column {missing[0]}, allowed: a table with {', '.join(_COLUMNS)}")
        begins = lines.line_num + 1
        for values in lines:
            if any(value.strip() for value in values):
                if len(values) != len(names):
                    raise UserError(f"got {len(values)} values, allowed: the {len(names)} of the columns")
                row = dict(zip(names, values, strict=True))
                # the category is the beginning of the tuple, as in "entity - whole (cat)"
                if not row["category_broad"].strip():
                    row["category_broad"] = re.split(r"[-(]", row.get("tuple", ""))[0]
                yield begins, {name: _said(name, row[name]).strip() for name in _COLUMNS}
            begins = lines.line_num + 1
    except (UserError, csv.Error) as error:
        why = f"no row of a table ({error}), allowed: CSV" if isinstance(error, csv.Error) else str(error)
        raise UserError(f"{path.name}, line {begins}: {why}") from error


def _dpg_prompt(path: Path, rows: list[tuple[int, Mapping[str, str]]]) -> QuestionedPrompt:
    """Prompt of one item's rows."""
    places: dict[int, int] = {}
    if len(rows) > MAX_QUESTIONS:
        raise UserError(
            f"{path.name}, line {rows[MAX_QUESTIONS][0]}: got {len(rows)} questions of one item, allowed: up "
            f"to {MAX_QUESTIONS}"
        )
    for place, (number, row) in enumerate(rows):
        name = _whole_number(path, number, "proposition_id", row["proposition_id"])
        if places.setdefault(name, place) != place or name < 1:
            raise UserError(
                f"{path.name}, line {number}: proposition_id {name} of item {row['item_id'][:60]!r}, "
                "allowed: from 1, each once in an item"
            )
    questions = []
    for number, row in rows:
        parents = [_whole_number(path, number, "dependency", each) for each in row["dependency"].split(",")]
        absent = [each for each in parents if each and each not in places]
        if absent:
            raise UserError(
                f"{path.name}, line {number}: depends on proposition {absent[0]}, allowed: 0 for none, or "
                f"those of item {row['item_id'][:60]!r}"
            )
        questions.append(
            Question(
                text=row["question_natural_language"],
                answer="yes",
                skill=row["category_broad"].lower(),
                parents=tuple(places[each] for each in parents if each),
            )
        )
    return QuestionedPrompt(prompt=rows[0][1]["text"], questions=tuple(questions))


def _whole_number(path: Path, line: int, what: str, text: str) -> int:
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UserError(f"{path.name}, line {line}: {what} {text[:60]!r}, allowed: whole numbers")
    return int(text)
