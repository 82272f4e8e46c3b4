"""GenEval's rules, one by one."""

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt, Requirement
from lightgen.evals.verdict import (
    Verdict,
    VerdictConfig,
    check_detection,
    confidence_threshold,
    keep_objects,
    own_colors,
    relations,
    verdict,
)
from lightgen.ports.protocols import Detection

SIZE = (100, 200)
CONFIG = VerdictConfig()


def found(
    label: str, score: float = 0.95, center: tuple[float, float] = (50, 50), side: float = 20
) -> Detection:
    x, y = center
    return Detection(label, score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


def no_color(detections: object, label: str) -> list[str]:
    raise AssertionError("colours must not be judged here")


def judge(prompt: Prompt, *detections: Detection, colors: dict[float, str] | None = None) -> Verdict:
    """Verdict where the colour of a detection is looked up by its score."""
    color_of = no_color if colors is None else lambda group, label: [colors[d.score] for d in group]
    return verdict(prompt, detections, SIZE, color_of, CONFIG)


def asked(*include: Requirement, exclude: tuple[Requirement, ...] = (), tag: str | None = None) -> Prompt:
    return Prompt(prompt="a test", tag=tag, include=include, exclude=exclude)


def test_defaults_are_genevals() -> None:
    assert VerdictConfig(threshold=0.3, counting_threshold=0.9, max_objects=16, position_margin=0.1) == CONFIG


def test_single_object() -> None:
    prompt = asked(Requirement(name="dog"), tag="single_object")
    assert judge(prompt, found("dog")) == Verdict(True, "", ())
    assert judge(prompt, found("cat")) == Verdict(False, "expected dog>=1, found 0", ("count",))
    assert judge(prompt).correct is False


def test_more_than_asked_is_right_without_an_exclude() -> None:
    assert judge(asked(Requirement(name="dog"), tag="single_object"), found("dog"), found("dog")).correct


def test_include_is_and() -> None:
    prompt = asked(Requirement(name="dog"), Requirement(name="cat"), tag="two_object")
    assert judge(prompt, found("dog"), found("cat")).correct
    assert not judge(prompt, found("dog")).correct
    assert not judge(prompt, found("cat")).correct
    neither = judge(prompt)
    assert neither.broken == ("count", "count")
    assert neither.reason == "expected dog>=1, found 0\nexpected cat>=1, found 0"


def test_exclude_is_or() -> None:
    exclude = (Requirement(name="cat"), Requirement(name="cow", count=2))
    prompt = asked(Requirement(name="dog"), exclude=exclude)
    assert judge(prompt, found("dog")).correct
    assert judge(prompt, found("dog"), found("cow")).correct
    assert judge(prompt, found("dog"), found("cat")).broken == ("exclude",)
    two_cows = judge(prompt, found("dog"), found("cow"), found("cow"))
    assert (two_cows.correct, two_cows.reason) == (False, "expected cow<2, found 2")
    assert judge(prompt, found("dog"), found("cat"), found("cow"), found("cow")).broken == (
        "exclude",
        "exclude",
    )


def test_counting_is_exact_by_its_exclude() -> None:
    prompt = asked(
        Requirement(name="dog", count=2), exclude=(Requirement(name="dog", count=3),), tag="counting"
    )
    right = {n: judge(prompt, *[found("dog")] * n).correct for n in range(5)}
    assert right == {0: False, 1: False, 2: True, 3: False, 4: False}


@pytest.mark.parametrize(("tag", "threshold"), [("counting", 0.9), ("two_object", 0.3), (None, 0.3)])
def test_threshold_by_tag_is_strict(tag: str | None, threshold: float) -> None:
    assert confidence_threshold(tag, CONFIG) == threshold
    prompt = asked(Requirement(name="dog"), tag=tag)
    assert not judge(prompt, found("dog", score=threshold)).correct
    assert judge(prompt, found("dog", score=threshold + 0.001)).correct


def test_doubtful_objects_do_not_spoil_a_count() -> None:
    prompt = asked(
        Requirement(name="dog", count=2), exclude=(Requirement(name="dog", count=3),), tag="counting"
    )
    assert judge(prompt, found("dog"), found("dog"), found("dog", score=0.89)).correct


def test_most_confident_sixteen_per_class_are_kept() -> None:
    scores = [0.5 + 0.01 * i for i in range(20)]
    kept = keep_objects([found("dog", s) for s in scores] + [found("cat", 0.4)], 0.3, 16)
    assert [d.score for d in kept["dog"]] == sorted(scores, reverse=True)[:16]
    assert [d.score for d in kept["cat"]] == [0.4]
    prompt = asked(Requirement(name="dog", count=17))
    assert judge(prompt, *[found("dog")] * 20).reason == "expected dog>=17, found 16"


def test_objects_in_one_place_all_count() -> None:
    """GenEval runs its detector with overlap suppression off."""
    assert judge(asked(Requirement(name="dog", count=3)), *[found("dog")] * 3).correct


def test_color_is_judged_on_the_most_confident_objects() -> None:
    prompt = asked(Requirement(name="dog", color="red"), tag="colors")
    colors = {0.9: "red", 0.8: "blue"}
    assert judge(prompt, found("dog", 0.8), found("dog", 0.9), colors=colors).correct
    colors = {0.9: "blue", 0.8: "red"}
    wrong = judge(prompt, found("dog", 0.8), found("dog", 0.9), colors=colors)
    assert (wrong.broken, wrong.reason) == (("color",), "expected red dog>=1, found 1 blue")


def test_every_object_asked_for_needs_the_color() -> None:
    prompt = asked(Requirement(name="dog", count=2, color="red"))
    assert judge(prompt, found("dog", 0.9), found("dog", 0.8), colors={0.9: "red", 0.8: "red"}).correct
    assert not judge(prompt, found("dog", 0.9), found("dog", 0.8), colors={0.9: "red", 0.8: "blue"}).correct


def test_color_is_not_judged_where_the_count_fails() -> None:
    assert judge(asked(Requirement(name="dog", count=2, color="red")), found("dog")).broken == ("count",)


def test_color_attribution_keeps_colors_with_their_objects() -> None:
    prompt = asked(
        Requirement(name="dog", color="red"), Requirement(name="cat", color="blue"), tag="color_attr"
    )
    assert judge(prompt, found("dog", 0.9), found("cat", 0.8), colors={0.9: "red", 0.8: "blue"}).correct
    swapped = judge(prompt, found("dog", 0.9), found("cat", 0.8), colors={0.9: "blue", 0.8: "red"})
    assert swapped.broken == ("color", "color")


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-30, 0), {"left of"}),
        ((30, 0), {"right of"}),
        ((0, -30), {"above"}),
        ((0, 30), {"below"}),
        ((-30, -30), {"left of", "above"}),
        ((30, 30), {"right of", "below"}),
        ((30, -30), {"right of", "above"}),
        ((0, 0), set()),
    ],
)
def test_relations_of_equal_boxes(offset: tuple[int, int], expected: set[str]) -> None:
    box = found("a", center=(50 + offset[0], 50 + offset[1]), side=10).box
    assert relations(box, found("b", center=(50, 50), side=10).box, 0.1) == expected


def test_relations_need_more_than_the_margin() -> None:
    """Two boxes of side 20: margin .1 * 40 = 4 px is taken off, and half of the offset must be left."""
    other = found("b", side=20).box
    at = {dx: relations(found("a", center=(50 + dx, 50)).box, other, 0.1) for dx in (3.9, 4, 7.9, 8.1, 20)}
    assert at == {3.9: set(), 4: set(), 7.9: set(), 8.1: {"right of"}, 20: {"right of"}}
    assert relations(found("a", center=(52, 50)).box, other, 0.0) == {"right of"}


def test_margin_grows_with_either_box() -> None:
    small, large = found("a", center=(62, 50), side=2).box, found("b", center=(50, 50), side=80).box
    assert relations(small, large, 0.1) == frozenset()
    assert relations(small, found("b", center=(50, 50), side=2).box, 0.1) == {"right of"}


def test_direction_is_a_share_of_the_whole_distance() -> None:
    """25 degrees below the horizontal, sin = .42, is not below; 35 degrees, sin = .57, is (tiny boxes)."""

    def at(degrees: float) -> frozenset[str]:
        x, y = 50 + 40 * np.cos(np.radians(degrees)), 50 + 40 * np.sin(np.radians(degrees))
        return relations(found("a", center=(x, y), side=0.1).box, found("b", side=0.1).box, 0.1)

    assert at(25) == {"right of"}
    assert at(35) == {"right of", "below"}
    assert at(65) == {"below"}


def test_a_small_offset_beyond_the_margin_is_a_relation() -> None:
    """Half a pixel is one, a thousandth of one is not: GenEval's bound is 1e-3, far below a pixel."""
    other = found("b", side=0.0).box
    assert relations(found("a", center=(50.5, 50), side=0.0).box, other, 0.1) == {"right of"}
    assert relations(found("a", center=(50.0005, 50), side=0.0).box, other, 0.1) == frozenset()


def test_half_of_the_distance_is_no_direction_yet() -> None:
    """Offsets of 6 and 8 px, 10 px apart, less a margin of 1: 5 of 10 across, 7 of 10 down."""
    boxes = (56.0, 58.0, 61.0, 63.0), (50.0, 50.0, 55.0, 55.0)
    assert relations(*boxes, 0.1) == {"below"}


def test_a_prompt_may_only_exclude() -> None:
    prompt = asked(exclude=(Requirement(name="dog"),))
    assert judge(prompt, found("cat")).correct and not judge(prompt, found("dog")).correct


def test_margin_is_taken_per_axis() -> None:
    """A wide flat box: the margin along x swallows an offset that would count along y."""
    wide, other = (0.0, 40.0, 100.0, 44.0), (20.0, 60.0, 120.0, 64.0)
    assert relations(wide, other, 0.1) == {"above"}


def position_prompt(relation: str, count: int = 1, color: str | None = None) -> Prompt:
    first = Requirement(name="cat", count=count)
    return asked(first, Requirement(name="dog", color=color, position=(relation, 0)), tag="position")


def test_position() -> None:
    cat, dog = found("cat", center=(150, 50)), found("dog", center=(50, 50))
    assert judge(position_prompt("left of"), cat, dog).correct
    wrong = judge(position_prompt("right of"), cat, dog)
    assert (wrong.broken, wrong.reason) == (("position",), "expected dog right of cat, found left of")
    same = judge(position_prompt("above"), cat, found("dog", center=(150, 50)))
    assert same.reason == "expected dog above cat, found no relation"


def test_position_holds_for_all_pairs() -> None:
    left, right = found("cat", center=(20, 50)), found("cat", center=(180, 50))
    dog = found("dog", center=(100, 50))
    assert judge(position_prompt("right of", count=2), left, found("cat", center=(40, 50)), dog).correct
    assert not judge(position_prompt("right of", count=2), left, right, dog).correct
    placed = asked(Requirement(name="cat"), Requirement(name="dog", count=2, position=("right of", 0)))
    cat = found("cat", center=(100, 50))
    assert judge(placed, cat, found("dog", center=(150, 50)), found("dog", center=(180, 50))).correct
    assert not judge(placed, cat, found("dog", center=(150, 50)), found("dog", center=(20, 50))).correct


def test_position_is_judged_on_the_most_confident_object() -> None:
    cat = found("cat", center=(100, 50))
    left, right = found("dog", 0.9, center=(20, 50)), found("dog", 0.8, center=(180, 50))
    assert judge(position_prompt("left of"), cat, right, left).correct
    assert not judge(position_prompt("right of"), cat, right, left).correct


def test_position_without_its_target() -> None:
    missing = judge(position_prompt("left of"), found("dog"))
    assert missing.broken == ("count", "target")
    assert missing.reason.endswith("no target for dog to be left of")


def test_position_is_not_judged_where_the_color_fails() -> None:
    prompt = position_prompt("right of", color="red")
    cat, dog = found("cat", 0.9, center=(150, 50)), found("dog", 0.8, center=(50, 50))
    assert judge(prompt, cat, dog, colors={0.8: "blue"}).broken == ("color",)


def test_target_of_the_wrong_color_is_no_target() -> None:
    prompt = asked(Requirement(name="cat", color="red"), Requirement(name="dog", position=("left of", 0)))
    cat, dog = found("cat", 0.9, center=(150, 50)), found("dog", 0.8, center=(50, 50))
    assert judge(prompt, cat, dog, colors={0.9: "blue"}).broken == ("color", "target")
    assert judge(prompt, cat, dog, colors={0.9: "red"}).correct


def test_settings_change_the_verdict() -> None:
    prompt = asked(Requirement(name="dog"))
    strict = VerdictConfig(threshold=0.97)
    assert judge(prompt, found("dog")).correct
    assert not verdict(prompt, [found("dog")], SIZE, no_color, strict).correct


def test_order_of_detections_does_not_matter() -> None:
    prompt = position_prompt("left of")
    all_ = [found("cat", 0.9, (150, 50)), found("cat", 0.6, (20, 20)), found("dog", 0.8, (50, 50))]
    assert judge(prompt, *all_) == judge(prompt, *reversed(all_))
    assert judge(prompt, *all_).correct


def test_prompt_that_requires_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="nothing can be judged"):
        judge(Prompt(prompt="a nice day"), found("dog"))


@pytest.mark.parametrize("target", [1, 2])
def test_position_by_a_later_object_is_refused(target: int) -> None:
    prompt = asked(Requirement(name="cat"), Requirement(name="dog", position=("left of", target)))
    with pytest.raises(UserError, match=f"object 1 is placed by object {target}"):
        judge(prompt, found("cat"), found("dog"))


@pytest.mark.parametrize(
    "detection",
    [
        Detection("dog", 1.5, (0, 0, 10, 10)),
        Detection("dog", float("nan"), (0, 0, 10, 10)),
        Detection("dog", 0.5, (10, 0, 0, 10)),
        Detection("dog", 0.5, (0, 0, float("inf"), 10)),
        Detection("dog", 0.5, (0, float("nan"), 10, 10)),
        Detection("dog", 0.5, (300, 0, 310, 10)),
        Detection("dog", 0.5, (0, 0, 10, 10), np.zeros((200, 100), dtype=bool)),
    ],
)
def test_detection_that_does_not_fit_the_picture_stops_the_run(detection: Detection) -> None:
    with pytest.raises(ValueError, match="detector gives 'dog'"):
        judge(asked(Requirement(name="cat")), found("cat"), detection)


def test_detection_with_its_mask_fits() -> None:
    check_detection(Detection("dog", 1.0, (-3, 0, 200, 100), np.zeros(SIZE, dtype=bool)), SIZE)


def test_own_colors() -> None:
    detections = [
        Detection("dog", 0.9, (0, 0, 1, 1), colors={"red": 0.2, "blue": 0.7}),
        Detection("dog", 0.8, (0, 0, 1, 1), colors={"red": 0.9, "blue": 0.1}),
    ]
    assert own_colors(detections, "dog") == ["blue", "red"]
    with pytest.raises(ValueError, match="colour classifier is needed"):
        own_colors([found("dog")], "dog")


@pytest.mark.parametrize(
    "field",
    [{"threshold": 1.0}, {"counting_threshold": -0.1}, {"max_objects": 0}, {"position_margin": float("nan")}],
)
def test_settings_out_of_range_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(field))):
        VerdictConfig(**field)  # pyright: ignore[reportArgumentType]
