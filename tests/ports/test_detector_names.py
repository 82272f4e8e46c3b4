import pytest

from lightgen.core.errors import UserError
from lightgen.ports.coco import GENEVAL_NAMES, coco_classes, geneval_name
from lightgen.ports.nano.world import CLASSES
from tests.ports.toy_detectors import LABELS


def test_there_are_eighty_names_in_cocos_order():
    assert len(GENEVAL_NAMES) == len(set(GENEVAL_NAMES)) == 80
    assert (GENEVAL_NAMES[0], GENEVAL_NAMES[15], GENEVAL_NAMES[-1]) == ("person", "cat", "toothbrush")
    places = [GENEVAL_NAMES.index(name) for name in ("computer mouse", "tv remote", "computer keyboard")]
    assert places == [64, 65, 66]
    assert set(CLASSES) < set(GENEVAL_NAMES)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("mouse", "computer mouse"),
        ("remote", "tv remote"),
        ("keyboard", "computer keyboard"),
        ("motorbike", "motorcycle"),
        ("aeroplane", "airplane"),
        ("sofa", "couch"),
        ("pottedplant", "potted plant"),
        ("potted_plant", "potted plant"),
        ("diningtable", "dining table"),
        ("tvmonitor", "tv"),
        ("TV", "tv"),
        ("Hair  drier", "hair drier"),
        ("cat", "cat"),
        ("window", None),
        ("", None),
    ],
)
def test_other_spellings(label, name):
    assert geneval_name(label) == name


def test_classes_are_all_of_coco_once_and_in_the_models_order():
    assert coco_classes(LABELS) == coco_classes(dict(enumerate(GENEVAL_NAMES))) == GENEVAL_NAMES
    turned = dict(enumerate(reversed(LABELS.values())))
    assert coco_classes(turned) == GENEVAL_NAMES[::-1]
    with pytest.raises(UserError, match="finds 79 classes, allowed: COCO's 80"):
        coco_classes({n: LABELS[n] for n in range(79)})
    with pytest.raises(UserError, match="finds a class 'LABEL_3'"):
        coco_classes({**LABELS, 3: "LABEL_3"})
    with pytest.raises(UserError, match="finds a class 'couch' twice"):
        coco_classes({**LABELS, 3: "sofa"})
    with pytest.raises(UserError, match="finds 80 classes"):
        coco_classes({n + 1: label for n, label in LABELS.items()})
