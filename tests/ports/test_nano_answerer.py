"""The nano answerer: probabilities by hand from detections, and answers on the teacher's pictures."""

from collections import defaultdict

import numpy as np
import pytest

from lightgen.core.draws import draw_key
from lightgen.core.errors import UserError
from lightgen.core.prompt import RELATIONS
from lightgen.evals.questions import soft_tifa
from lightgen.evals.verdict import relations
from lightgen.ports.nano import answerer as module
from lightgen.ports.nano.answerer import NanoAnswerer, count_distribution, stands
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig, ErrorKnob
from lightgen.ports.nano.looks import find_objects
from lightgen.ports.nano.questions import nano_question_prompts
from lightgen.ports.protocols import Detection
from lightgen.stages.checkpoint import load_detector, open_detector

IMAGE = np.zeros((1, 128, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def answerer() -> NanoAnswerer:
    return NanoAnswerer(load_detector(open_detector(None)))


@pytest.fixture
def see(answerer: NanoAnswerer, monkeypatch: pytest.MonkeyPatch):
    """Probabilities of answers where the detector finds what it is told to."""

    def found(objects: list[Detection], question: str, *answers: str) -> list[float]:
        monkeypatch.setattr(module, "find_objects", lambda detector, images: [objects] * len(images))
        return answerer.answer(IMAGE, [question], [answers])[0].tolist()

    return found


def at(
    label: str, score: float, x: float = 60, y: float = 60, side: float = 20, **colors: float
) -> Detection:
    return Detection(label, score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), colors=colors)


def test_numbers_follow_the_sum_of_independent_draws() -> None:
    assert count_distribution([]).tolist() == [1.0]
    assert count_distribution([0.5, 0.5]).tolist() == [0.25, 0.5, 0.25]
    scores = np.random.default_rng(0).random(5)
    expected = np.zeros(6)
    for outcome in range(32):
        drawn = np.array([outcome >> i & 1 for i in range(5)])
        expected[drawn.sum()] += np.prod(np.where(drawn, scores, 1 - scores))
    np.testing.assert_allclose(count_distribution(scores.tolist()), expected)


def test_answers_by_hand(see) -> None:
    dogs = [at("dog", 0.9, red=0.8), at("dog", 0.5, red=0.2, blue=0.8), at("dog", 0.04), at("cat", 1.0)]
    anything = 1 - 0.1 * 0.5
    assert see(dogs, "Are there any dogs in the image?", "Yes", "no", "two") == pytest.approx(
        [anything, 1 - anything, 0.0]
    )
    assert see(dogs, "How many dogs are in the image?", "zero", "one", "2", "three", "Yes") == pytest.approx(
        [0.05, 0.5, 0.45, 0.0, 0.0]
    )
    share = (0.9 * 0.8 + 0.5 * 0.2) / 1.4
    assert see(dogs, "Are the dogs red?", "yes", "no") == pytest.approx(
        [anything * share, 1 - anything * share]
    )
    assert see(dogs, "Is the dog green?", "Yes") == [0.0]
    assert see([], "Is the dog red?", "yes", "no") == [0.0, 1.0]
    assert see([], "How many dogs are in the image?", "zero") == [1.0]


def test_a_relation_by_hand(see) -> None:
    pair = [at("dog", 0.9, x=30), at("cat", 0.8, x=90, y=70)]
    for question, yes in (
        ("Is the dog left of the cat?", 0.72),
        ("Is the cat to the right of the dog?", 0.72),
        ("Is the dog right of the cat?", 0.0),
        ("Is the dog above the cat?", 0.0),
    ):
        assert see(pair, question, "yes", "no") == pytest.approx([yes, 1 - yes])
    assert see(pair[:1], "Is the dog left of the cat?", "yes", "no") == [0.0, 1.0]
    # the third dog is beyond the cats: of six pairs, four are right
    three = [at("dog", 1.0, x=x) for x in (10, 20, 100)] + [at("cat", 1.0, x=80, y=y) for y in (50, 70)]
    assert see(three, "Are the dogs left of the cats?", "yes") == pytest.approx([4 / 6])
    both_sides = [at("dog", 1.0, x=20), at("dog", 1.0, x=100), at("cat", 1.0)]
    assert see(both_sides, "Are the dogs left of the cat?", "yes") == [0.0]


def test_a_relation_is_genevals() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        x0, y0, x1, y1 = random.uniform(0, 100, (2, 4)).T
        boxes = [
            (float(min(a, c)), float(min(b, d)), float(max(a, c)), float(max(b, d)))
            for a, b, c, d in zip(x0, y0, x1, y1, strict=True)
        ]
        found = {relation for relation in RELATIONS if stands(boxes[0], relation, boxes[1])}
        assert found == relations(boxes[0], boxes[1], 0.1)
    assert not any(stands((0, 0, 9, 9), relation, (0, 0, 9, 9)) for relation in RELATIONS)


@pytest.mark.parametrize(
    "question",
    [
        *("Is there a dog in the image?", "Are there any dogs?", "is there any dog in this picture"),
        *("How many dogs are there in the image?", "How many sheep" + "s are in the image?"),
        *("Are the teddy bears red?", "Is the orange orange?", "Are the hot dogs to the left of the knives?"),
        *("How many people are in the image?", "Is the man above the bike?", "Are the mice under the sofa?"),
    ],
)
def test_wordings_that_it_understands(see, question: str) -> None:
    assert len(see([], question, "yes")) == 1


@pytest.mark.parametrize(
    "question",
    [
        *("", "Is it?", "How many unicorns are in the image?", "Are the dogs happy?", "What is this?"),
        *("Is the dog behind the cat?", "Are there any dogs in the image? Yes.", "Is the red dog?"),
    ],
)
def test_what_it_does_not_understand_is_told(answerer: NanoAnswerer, question: str) -> None:
    with pytest.raises(UserError, match="nano answerer: got the question") as caught:
        answerer.answer(IMAGE, [question], [("yes",)])
    assert "How many dogs are in the image?" in str(caught.value) and "\n" not in str(caught.value)


def test_a_picture_with_many_questions_is_looked_at_once(answerer, monkeypatch) -> None:
    images = EmojiTeacher().generate(["a red dog", "two cats"], [0, 1], 128, 128)
    looked: list[int] = []

    def counted(detector, pictures):
        looked.append(len(pictures))
        return find_objects(detector, pictures)

    monkeypatch.setattr(module, "find_objects", counted)
    questions = ["Is the dog red?", "How many cats are in the image?", "Is there a dog in the image?"] * 2
    answers = [("yes", "no"), ("two",), ("yes",)] * 2
    found = answerer.answer(images[[0, 1, 0, 1, 0, 1]], questions, answers)
    assert looked == [2]
    assert [each.dtype for each in found] == [np.float32] * 6
    assert [each.shape for each in found] == [(2,), (1,), (1,)] * 2
    assert found[0][0] > 0.9 and found[1][0] > 0.9 and found[2][0] > 0.9
    assert found[3][0] < 0.1 and found[4][0] < 0.1 and found[5][0] < 0.1
    for i in range(6):
        image = images[i % 2][None]
        alone = answerer.answer(image, questions[i : i + 1], answers[i : i + 1])[0]
        np.testing.assert_allclose(alone, found[i], atol=1e-5)
    assert answerer.answer(images[:0], [], []) == []


def test_two_looks_find_all_objects() -> None:
    detector = load_detector(open_detector(None))
    prompts = [
        "two dogs and two cars and two cups and two kites",
        "a dog",
        "a red car left of a cup",
        "a tv",
    ] * 4
    teacher = EmojiTeacher()
    drawn = [teacher.draw(prompt, seed, 128, 128) for seed, prompt in enumerate(prompts)]
    images = np.stack([each.image for each in drawn])
    for each, twice in zip(drawn, find_objects(detector, images), strict=True):
        assert sorted(d.label for d in twice if d.score > 0.3) == sorted(o["class"] for o in each.objects)
        assert [d.score for d in twice] == sorted((d.score for d in twice), reverse=True)
        for detection in twice:
            x, y = np.mean(detection.box[::2]), np.mean(detection.box[1::2])
            boxes = [o["box"] for o in each.objects if o["class"] == detection.label]
            assert detection.score < 0.3 or any(a <= x <= c and b <= y <= d for a, b, c, d in boxes)
    wide = np.repeat(np.repeat(images[:1], 2, 1), 2, 2)
    for a, b in zip(find_objects(detector, wide)[0], find_objects(detector, images[:1])[0], strict=False):
        assert a.label == b.label
        np.testing.assert_allclose(np.array(a.box) / 2, b.box, atol=3)


def test_right_renders_score_high_and_each_error_shows_in_its_skill(answerer: NanoAnswerer) -> None:
    prompts = nano_question_prompts(24, 1)
    seeds = [draw_key(1, "soft-tifa", i) for i in range(len(prompts))]
    asked = [(i, question) for i, prompt in enumerate(prompts) for question in prompt.questions]

    def measure(errors: ErrorKnob) -> tuple[dict[str, float], float]:
        teacher = EmojiTeacher(EmojiTeacherConfig(errors=errors))
        images = teacher.generate([prompt.prompt for prompt in prompts], seeds, 128, 128)
        found = answerer.answer(
            images[[i for i, _ in asked]], [q.text for _, q in asked], [(q.answer,) for _, q in asked]
        )
        skills, by_image = defaultdict(list), defaultdict(list)
        for (i, question), probability in zip(asked, found, strict=True):
            skills[question.skill].append(probability[0])
            by_image[i].append(probability[0])
        gm = np.mean([soft_tifa(np.array(each)).gm for each in by_image.values()])
        return {name: float(np.mean(values)) for name, values in skills.items()}, float(gm)

    right, gm = measure(ErrorKnob())
    assert gm > 0.9 and min(right.values()) > 0.9
    # in most pictures one of several groups is wrong, so that a skill's mean falls by a part only
    wrong, wrong_gm = measure(ErrorKnob(wrong_count=1.0, wrong_color=1.0, wrong_place=1.0))
    for skill, fall in (("count", 0.12), ("attribute", 0.25), ("position", 0.9)):
        assert wrong[skill] < right[skill] - fall, (skill, right, wrong)
    assert wrong["object"] > 0.9 and wrong_gm < gm - 0.5
    wrong, wrong_gm = measure(ErrorKnob(wrong_class=1.0))
    assert wrong["object"] < right["object"] - 0.2 and wrong_gm == 0
