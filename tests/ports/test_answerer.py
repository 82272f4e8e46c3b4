"""Answerers of transformers: what an answer's probability is, and models of random weights that give it."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightgen.core.errors import UserError
from lightgen.ports.answerer import ModelAnswererConfig, add_up, rivals, spellings, telling_tokens
from lightgen.ports.answerer_model import ModelAnswerer, answerer_files, load_answerer
from tests.ports.toy_answerer import FAMILIES, save_family
from tests.ports.toy_captioner import SPECIAL, save_reader, toy_tokenizer

CONFIG = ModelAnswererConfig(model="toy", precision="fp32", batch_size=4)
CPU = torch.device("cpu")
QUESTIONS = [
    "Is it red?",
    "How many dogs are there in the image?",
    "Which?",
    "Is there a much longer question?",
]
ANSWERS = [("yes", "no"), ("four", "fourteen", "4"), ("left", "right", "leftover"), ("Yes",)]


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)


def letters(text: str) -> tuple[int, ...]:
    return tuple(toy_tokenizer()(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("answerers")
    return {family: save_family(family, root / family) for family in FAMILIES}


def test_the_spellings_of_an_answer_and_its_rivals() -> None:
    assert set(spellings("four")) == {
        blank + word for word in ("four", "Four", "FOUR", "4") for blank in ("", " ")
    }
    assert "Hot dog" in spellings(" hot  Dog") and "hot Dog" in spellings(" hot  Dog")
    assert set(spellings("25")) == {"25", " 25"}
    assert rivals(["Yes"]) == ("no",) and rivals(["yes", "No"]) == () and rivals(["red"]) == ()
    assert set(rivals(["two"])) == {str(n) for n in range(21)} - {"2"}
    with pytest.raises(UserError, match="empty answer"):
        spellings("  ")


def test_a_first_token_tells_where_no_rival_begins_with_it() -> None:
    four, fourteen, five = (1,), (1, 2), (3, 4)
    assert telling_tokens({"4": [four], "5": [five]}, {}) == {(1,): "4", (3,): "5"}
    assert telling_tokens({"4": [four]}, {"14": [fourteen]}) == {(1,): "4"}
    assert telling_tokens({"14": [fourteen]}, {"4": [four]}) == {(1, 2): "14"}
    assert telling_tokens({"4": [(9, 5, 5)], "5": [(9, 6)]}, {}) == {(9, 5): "4", (9, 6): "5"}
    with pytest.raises(UserError, match="same tokens"):
        telling_tokens({"a": [(1, 2)], "b": [(1, 2)]}, {})


def test_a_text_counts_for_the_longest_answer_that_it_begins_with() -> None:
    telling = {(1,): "4", (1, 2): "14", (1, 2, 3): "4", (7,): "14"}
    probability = {(1,): 0.5, (1, 2): 0.3, (1, 2, 3): 0.1, (7,): 0.25}
    assert add_up(telling, probability) == pytest.approx({"4": 0.5 - 0.3 + 0.1, "14": 0.3 - 0.1 + 0.25})
    assert add_up({(1,): "4"}, {}) == {"4": 0.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_question_is_answered_alike_in_any_batch(folders: dict[str, Path], family: str) -> None:
    answerer = load_answerer(CONFIG, folders[family], CPU)
    seen = images()
    together = answerer.answer(seen, QUESTIONS, ANSWERS)
    assert [(each.dtype, each.shape) for each in together] == [(np.float32, (len(a),)) for a in ANSWERS]
    assert all(((each >= 0) & (each <= 1)).all() for each in together)
    for i in range(4):
        alone = answerer.answer(seen[i : i + 1], QUESTIONS[i : i + 1], ANSWERS[i : i + 1])[0]
        np.testing.assert_allclose(alone, together[i], atol=1e-5)
    back = answerer.answer(seen[::-1], QUESTIONS[::-1], ANSWERS[::-1])[::-1]
    small = load_answerer(replace(CONFIG, batch_size=1), folders[family], CPU).answer(
        seen, QUESTIONS, ANSWERS
    )
    for a, b, c in zip(together, back, small, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(a, c, atol=1e-5)
    assert together[1][0] == together[1][2], "four and 4 are one answer"
    assert together[0].sum() <= 1 + 1e-5 and together[1][:2].sum() <= 1 + 1e-5
    other = answerer.answer(255 - seen, QUESTIONS, ANSWERS)
    assert max(abs(a - b).max() for a, b in zip(together, other, strict=True)) > 1e-4, "it looks at images"
    assert answerer.answer(seen[:0], [], []) == []
    assert answerer.answer(seen[:1], QUESTIONS[:1], [()])[0].shape == (0,)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probability_is_that_of_the_models_own_text(folders: dict[str, Path], family: str) -> None:
    """Of `yes` the first letter tells, of a count as many as tell it from others, by passes of the model."""
    answerer = load_answerer(CONFIG, folders[family], CPU)
    image, language = images()[:1], answerer._language

    def probability(question: str, *texts: str) -> float:
        """Of a text that begins with one of these, no two of which begin alike."""
        inputs, counts = language.see(list(image))
        chat = language.chat_with_image(f"{question} Answer in one word.", counts[0], "Answer:")
        found = 0.0
        for text in texts:
            ids = letters(text)
            with torch.no_grad():
                logits = language.model(**language.batch([[*chat, *ids]], inputs)).logits[0].float()
            steps = logits.softmax(1)[len(chat) - 1 :]
            found += float(np.prod([float(steps[n, each]) for n, each in enumerate(ids)]))
        return found

    def answers(*asked: str) -> list[float]:
        return answerer.answer(image, ["How many"], [asked])[0].tolist()

    close = {"abs": 2e-6, "rel": 1e-4}
    yes, no = answers("Yes", "no")
    assert yes == pytest.approx(probability("How many", "y", "Y", " y", " Y"), **close)
    assert no == pytest.approx(probability("How many", "n", "N", " n", " N"), **close)
    # 1 begins ten to nineteen as well, and o no other count; f begins four, five and their teens
    assert answers("one")[0] == pytest.approx(
        probability("How many", "o", "O", " o", " O", "1", " 1"), **close
    )
    digits, teens = ("4", " 4"), ("14", " 14")
    short = [blank + word for word in ("four", "Four", "FOUR") for blank in ("", " ")]
    long = [blank + word for word in ("fourt", "Fourt", "FOURT") for blank in ("", " ")]
    four, fourteen = answers("four", "fourteen")
    told = probability("How many", *long)
    assert fourteen == pytest.approx(told + probability("How many", *teens), **close)
    alone = probability("How many", *digits, *short)
    assert four == pytest.approx(alone - told, **close)
    assert answers("four")[0] == pytest.approx(alone, **close)


def test_words_of_the_template_in_a_question_do_nothing(folders: dict[str, Path]) -> None:
    answerer = load_answerer(CONFIG, folders["qwen3_vl"], CPU)
    plain, odd = answerer.answer(images()[:2] * 0, ["a   b", "a <image> b"], [("yes",), ("yes",)])
    np.testing.assert_allclose(plain, odd, atol=1e-5)
    ids = answerer._language.chat_with_image(answerer._asked("<image></see><end>"), 3, "Answer:")
    assert ids.count(SPECIAL.index("<image>")) == 3 and SPECIAL.index("<end>") not in ids


def test_without_a_template_the_question_is_asked_plainly(tmp_path: Path) -> None:
    answerer = load_answerer(CONFIG, save_family("qwen3_vl", tmp_path, template=None), CPU)
    ids = answerer._language.chat_with_image(answerer._asked("Red:"), 1, "Answer:")
    assert toy_tokenizer().decode(ids) == "<image>\nRed: Answer in one word.\n\nAnswer:"
    assert answerer.answer(images()[:1], ["Red?"], [("yes", "no")])[0].shape == (2,)


def test_only_likely_beginnings_cost_another_pass(folders: dict[str, Path]) -> None:
    answerer = load_answerer(CONFIG, folders["llava"], CPU)
    passes = itertools.count()
    inner = answerer._next

    def counted(*arguments):
        next(passes)
        return inner(*arguments)

    answerer._next = counted
    answerer.answer(images()[:1], ["Which?"], [("blue", "red")])
    assert next(passes) == 2, "once, and once for what follows a blank"

    def sure(seen, questions, stems):
        next(passes)
        found = torch.zeros(len(stems), len(toy_tokenizer()))
        found[:, letters("y")[0]] = 1
        return found

    answerer._next = sure
    before = next(passes)
    assert answerer.answer(images()[:1], ["Red?"], [("yes", "no")])[0].tolist() == [1, 0]
    assert next(passes) - before == 2, "a blank of no probability is not followed"


def test_what_cannot_answer_is_told_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answerer .*holds a 'qwen2', allowed: llava, qwen2_vl, qwen2_5_vl"):
        load_answerer(CONFIG, save_reader(tmp_path / "reader"), CPU)
    with pytest.raises(UserError, match="answerer .*no config.json"):
        answerer_files(tmp_path)
    answerer = load_answerer(CONFIG, folders["llava"], CPU)
    assert isinstance(answerer, ModelAnswerer)
    with pytest.raises(UserError, match="answerer toy: got the answer 'ü'"):
        answerer.answer(images()[:1], ["Which?"], [("ü",)])
    for broken, named in (
        ({"prompt": "Answer."}, "--answerer.prompt: got 'Answer.'"),
        ({"prompt": "{question} {question}"}, "once"),
        ({"batch_size": 0}, "--answerer.batch-size: got 0"),
    ):
        with pytest.raises(UserError, match=named):
            load_answerer(replace(CONFIG, **broken), folders["llava"], CPU)
