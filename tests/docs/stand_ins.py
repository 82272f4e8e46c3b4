"""What the documents take for granted, made on the spot: pictures, checkpoints, folders of others' models."""

from collections.abc import Callable
from pathlib import Path

# By the name that a document gives it: a command that makes it, or a function of the place where it lies.
StandIn = str | Callable[[Path], object]


def picture(path: Path) -> None:
    """A room, more or less: 128 px with a floor."""
    from PIL import Image

    room = Image.new("RGB", (128, 128), (200, 190, 170))
    room.paste((90, 60, 40), (0, 90, 128, 128))
    room.save(path)


def mask(path: Path) -> None:
    """A mask that is white in the middle."""
    from PIL import Image

    middle = Image.new("L", (128, 128), 0)
    middle.paste(255, (32, 32, 96, 96))
    middle.save(path)


def student(path: Path) -> None:
    """A checkpoint of a small untrained student."""
    from tests.stages.toy import write_student

    write_student(path)


def public_set(path: Path) -> None:
    """A folder of pictures with their captions beside them, and scores where a document limits them."""
    import json

    from PIL import Image

    path.mkdir(parents=True)
    for i in range(4):
        image = Image.new("RGB", (96, 64), (40 * i, 255 - 50 * i, 90))
        image.paste((255, 255, 255), (8 * i, 8, 8 * i + 40, 50))
        image.save(path / f"{i}.png")
        record = {"prompt": f"a photo of {i} dogs", "clip_score": 0.7, "aesthetic": 5.0 + i}
        (path / f"{i}.json").write_text(json.dumps(record))


def pairs(path: Path) -> None:
    """A folder of pictures of 128 px, two of each prompt, one of which people chose."""
    import json

    from PIL import Image

    path.mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (128, 128), (30 * i, 90, 120)).save(path / f"{i}.png")
        record = {"prompt": f"a photo of {i // 2} dogs", "score": float(i % 2)}
        (path / f"{i}.json").write_text(json.dumps(record))


def released(path: Path) -> None:
    """Weights of a tiny model under the released names."""
    import torch

    from tests.ports.released_weights import released_weights

    torch.save({"model_ema": released_weights(), "epoch": 8}, path)


def autoencoder(path: Path) -> None:
    """An autoencoder of diffusers."""
    from tests.stages.test_import_checkpoint import write_vae

    write_vae(path)


def text_encoder(path: Path) -> None:
    """A T5 with its tokenizer."""
    from tests.stages.test_import_checkpoint import write_text_encoder

    write_text_encoder(path)


def pipeline(path: Path) -> None:
    """A tiny pipeline of FLUX."""
    from tests.ports.toy_pipelines import save_pipeline

    save_pipeline("FluxPipeline", path)


def clip(path: Path) -> None:
    """A tiny CLIP."""
    from tests.ports.toy_clip import save_clip

    save_clip(path)


STAND_INS: dict[str, StandIn] = {
    "room.png": picture,
    "mask.png": mask,
    "SET": public_set,
    "pairs": pairs,
    "lightgen.pth": released,
    "stable-diffusion-3.5-large/vae": autoencoder,
    "flan-t5-xxl": text_encoder,
    "runs/student": student,
    "runs/start": student,
    "runs/scenes": "lightgen distill nano-teacher --out runs/scenes",
    "runs/latents": "lightgen encode nano --in runs/scenes --out runs/latents",
    "runs/references": "lightgen distill nano-teacher --in runs/samples --out runs/references",
    "runs/another-score": "lightgen evaluate nano-geneval --in nano --out runs/another-score",
}
# Named by the options that make commands small.
TOYS: dict[str, Callable[[Path], object]] = {"pipeline": pipeline, "clip": clip}
