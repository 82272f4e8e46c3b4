"""Files of questions: both kinds read to the same records, and what is wrong with one is told by its line."""

import json
from pathlib import Path

import pytest

from lightgen.core.errors import UserError
from lightgen.core.questions import Question, QuestionedPrompt
from lightgen.data import question_files as module
from lightgen.data.question_files import (
    question_kind,
    read_dpg,
    read_geneval2,
    read_questions,
    write_geneval2,
)

# The example of GenEval 2's own documentation.
RECORD = {
    "prompt": "four white bicycles in front of three plastic cows",
    "atom_count": 7,
    "vqa_list": [
        ["How many bicycles are in the image?", "four"],
        ["Are the bicycles white?", "Yes"],
        ["Are there any bicycles in the image?", "Yes"],
        ["Are the bicycles in front of the cows?", "Yes"],
        ["How many cows are in the image?", "three"],
        ["Are the cows plastic?", "Yes"],
        ["Are there any cows in the image?", "Yes"],
    ],
    "skills": ["count", "attribute", "object", "position", "count", "attribute", "object"],
}
HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language"
)
TABLE = [
    '7,"A cat, on a ""mat"".",,1,0,entity,whole,entity - whole (cat),Is there a cat?',
    '7,"A cat, on a ""mat"".",,2,1,Attribute,color,"attribute - color (cat, grey)",Is the cat grey?',
    '7,"A cat, on a ""mat"".",,3,"1, 2",relation,spatial,"relation - spatial (cat, mat, on)","Is it',
    'on a mat?"',
    "",
    "a2,two dogs,,1,0,,count,other - count (dogs==2),Are there two dogs?",
]


def save(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def line(**changes: object) -> str:
    return json.dumps({**RECORD, **changes})


def test_geneval2_is_read_as_it_is_published(tmp_path: Path) -> None:
    other = line(prompt="a \u2028 \u00fc", atom_count=None)
    path = save(tmp_path / "q.jsonl", f"\ufeff{line()}\r\n\n{other}\n{line()}")
    found = read_geneval2(path)
    assert [each.prompt for each in found] == [RECORD["prompt"], "a \u2028 \u00fc"], "the third is the first"
    assert [each.atom_count for each in found] == [7, None]
    assert found[0].questions[3] == Question(
        text="Are the bicycles in front of the cows?", answer="Yes", skill="position"
    )
    assert [each.skill for each in found[0].questions] == RECORD["skills"]
    assert question_kind(path) == "geneval2" and read_questions(path) == found


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", line() + "\n" + line(prompt="a \u2028", atom_count=None))
    found = read_geneval2(path)
    assert write_geneval2(tmp_path / "b.jsonl", iter(found)) == 2
    assert read_geneval2(tmp_path / "b.jsonl") == found
    assert json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0]) == RECORD
    with pytest.raises(UserError, match="no prompts to write"):
        write_geneval2(tmp_path / "c.jsonl", [])
    question = Question(text="a?", answer="yes", skill="s", parents=(0,))
    with pytest.raises(UserError, match="depend on others"):
        write_geneval2(tmp_path / "c.jsonl", [QuestionedPrompt(prompt="a", questions=(question,))])
    assert not (tmp_path / "c.jsonl").exists()


def test_dpg_is_read_with_its_first_row_and_its_dependencies(tmp_path: Path) -> None:
    path = save(tmp_path / "dpg.csv", "\ufeff" + "\r\n".join([HEADER, *TABLE]))
    found = read_dpg(path)
    assert [each.prompt for each in found] == ['A cat, on a "mat".', "two dogs"]
    assert [each.parents for each in found[0].questions] == [(), (0,), (0, 1)]
    assert [each.skill for each in found[0].questions] == ["entity", "attribute", "relation"]
    assert found[0].questions[2].text == "Is it\r\non a mat?"
    assert found[1].questions == (Question(text="Are there two dogs?", answer="yes", skill="other"),)
    assert {each.answer for prompt in found for each in prompt.questions} == {"yes"}
    assert question_kind(path) == "dpg" and read_questions(path) == found


def test_proposition_ids_need_neither_order_nor_begin_with_one(tmp_path: Path) -> None:
    rows = ["x,p,,9,4,entity,w,t,A?", "y,q,,1,0,entity,w,t,C?", "x,p,,4,9,entity,w,t,B?"]
    found = read_dpg(save(tmp_path / "d.csv", "\n".join([HEADER, *rows])))
    assert [each.prompt for each in found] == ["p", "q"]
    assert [(each.text, each.parents) for each in found[0].questions] == [("A?", (1,)), ("B?", (0,))]


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("{", "got '{', allowed: JSON"),
        ("[1]", "allowed: JSON"),
        ("[" * 100_000, "allowed: JSON"),
        (line(prompt=""), "prompt: got ''"),
        (line(prompt=3), "prompt: got 3"),
        (line(prompt="a" * 9000), "prompt: got 9000 letters, allowed: a text of up to 8192"),
        (line(prompt="\ud800"), "half a letter"),
        (line(vqa_list=[]), "vqa_list: got 0 questions"),
        (line(vqa_list="x"), "vqa_list: got 'x'"),
        (
            line(vqa_list=[["a?", "b"]] * 257, skills=["s"] * 257),
            "got 257 questions, allowed: a list of 1 to 256",
        ),
        (line(vqa_list=[["a?", "b", "c"]], skills=["s"]), "allowed: pairs"),
        (line(vqa_list=[["a?", 4]], skills=["s"]), "answer: got 4"),
        (line(vqa_list=[[" ", "4"]], skills=["s"]), "question: got ' '"),
        (line(skills=["count"]), "skills: got 1 skills, allowed: one for each of 7 questions"),
        (line(skills=None), "skills: got None"),
        (line(atom_count=0), "atom_count: got 0"),
        (line(atom_count=True), "atom_count: got True"),
        (line(atom_count=3), "has other questions than on line 1"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: str, named: str) -> None:
    path = save(tmp_path / "q.jsonl", f"{line()}\n\n{broken}\n")
    with pytest.raises(UserError) as caught:
        read_questions(path)
    assert "q.jsonl, line 3: " in str(caught.value) and named in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("9,p,,1,0,entity,w,t", "line 8: got 8 values, allowed: the 9 of the columns"),
        ("9,p,,one,0,entity,w,t,Q?", "line 8: proposition_id 'one'"),
        ("9,p,,0,0,entity,w,t,Q?", "line 8: proposition_id 0"),
        ("9,p,,1,,entity,w,t,Q?", "line 8: dependency: got ''"),
        ("9,p,,1,-1,entity,w,t,Q?", "line 8: dependency '-1'"),
        ('9,p,,1,"0,2",entity,w,t,Q?', "line 8: depends on proposition 2, allowed: 0 for none"),
        ("9,p,,1,0,,w,,Q?", "line 8: category_broad: got ''"),
        ("9,p,,1,0,entity,w,t,", "line 8: question_natural_language: got ''"),
        ("9,,,1,0,entity,w,t,Q?", "line 8: text: got ''"),
        ("7,p,,4,0,entity,w,t,Q?", "line 8: item '7' has another text than on line 2"),
        ("a2,two dogs,,1,0,entity,w,t,Q?", "line 8: proposition_id 1 of item 'a2'"),
        ("9,two dogs,,1,0,entity,w,t,Q?", "line 8: prompt 'two dogs' has other questions than on line 7"),
        ('9,"p"x,,1,0,entity,w,t,Q?', "line 8: no row of a table"),
        ('9,"p', "line 8: no row of a table"),
        (f"9,{'p' * 200_000},,1,0,entity,w,t,Q?", "line 8: no row of a table"),
        ("9,p\0,,1,0,entity,w,t,Q?", "line 8: text: got NUL"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: str, named: str) -> None:
    path = save(tmp_path / "dpg.csv", "\n".join([HEADER, *TABLE, row]))
    with pytest.raises(UserError) as caught:
        read_questions(path)
    assert f"dpg.csv, {named}" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_no_file_of_questions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, named in (
        ("", "begins with '', allowed: GenEval 2's JSON lines"),
        ("a red cat\n", "begins with 'a red cat'"),
        ("prompt,seed\na,1\n", "begins with 'prompt,seed'"),
        ("\n\n", "begins with ''"),
    ):
        with pytest.raises(UserError, match=named):
            read_questions(save(tmp_path / "x", text))
    with pytest.raises(UserError, match="x: got no prompts"):
        read_geneval2(save(tmp_path / "x", "\n\n"))
    with pytest.raises(UserError, match="x: got no prompts"):
        read_dpg(save(tmp_path / "x", HEADER + "\n"))
    with pytest.raises(UserError, match="line 1: no column text, allowed: a table"):
        read_questions(save(tmp_path / "x", "item_id,question_natural_language\n"))
    with pytest.raises(UserError, match="line 2: not UTF-8 text at byte"):
        read_questions(save(tmp_path / "x", line() + "\n\u00e9", "latin-1"))
    with pytest.raises(UserError, match="not readable"):
        read_questions(tmp_path)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    with pytest.raises(UserError, match="more than 10 bytes"):
        read_questions(save(tmp_path / "x", line()))


def test_there_is_a_most_number_of_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROMPTS", 1)
    with pytest.raises(UserError, match="line 2: got more than 1 prompts"):
        read_questions(save(tmp_path / "x", f"{line()}\n{line(prompt='b')}"))
