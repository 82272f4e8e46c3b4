"""COCO's 80 classes by the names that GenEval has for them, and what models of COCO call their outputs."""

from collections.abc import Mapping, Sequence

from lightgen.core.errors import UserError

# In COCO's order. Source: github djghosh13/geneval, `evaluation/object_names.txt` (names only).
GENEVAL_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"),
    *("surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
    *("chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse"),
    *("tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)

# What checkpoints call a class that GenEval calls otherwise: COCO's own names, and those of older sets.
_SPELLINGS = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "tv monitor": "tv",
    "television": "tv",
    "mobile phone": "cell phone",
    "hair dryer": "hair drier",
    "doughnut": "donut",
}


def geneval_name(label: str) -> str | None:
    """GenEval's name of a class by whatever name a model of COCO has for it; None for any other class."""
    spelled = " ".join(label.lower().replace("_", " ").split())
    name = _SPELLINGS.get(spelled, spelled)
    return name if name in GENEVAL_NAMES else None


def coco_classes(labels: Mapping[int, str]) -> tuple[str, ...]:
    """GenEval's names of a model's outputs, in the order of the outputs.

    Args:
        labels: the model's own names by output, as `id2label` of its config.

    Raises:
        UserError: they are not COCO's 80 classes, each once.
    """
    allowed = f"allowed: COCO's {len(GENEVAL_NAMES)} classes, each once"
    if sorted(labels) != list(range(len(GENEVAL_NAMES))):
        raise UserError(f"finds {len(labels)} classes, {allowed}")
    names = {number: geneval_name(str(label)) for number, label in labels.items()}
    unknown = next((labels[number] for number in sorted(names) if names[number] is None), None)
    if unknown is not None:
        raise UserError(f"finds a class {str(unknown)[:40]!r}, {allowed}")
    found = tuple(name for _, name in sorted(names.items()) if name is not None)
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"finds a class {twice!r} twice, {allowed}")
    return found


def check_labels(kind: str, labels: Sequence[str]) -> None:
    """Refuse a class that a detector of COCO does not know.

    Args:
        kind: of the detector, as the user names it.
        labels: classes that are asked for.

    Raises:
        UserError: one is none of GENEVAL_NAMES.
    """
    unknown = sorted(set(labels) - set(GENEVAL_NAMES))
    if unknown:
        raise UserError(
            f"detector {kind}: class {unknown[0]!r} is unknown, allowed: {', '.join(GENEVAL_NAMES)}"
        )
