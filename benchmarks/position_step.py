"""Error of a student of 128 px on pictures of 256 px, untrained for them, by the distance of its tokens.

.venv/bin/python benchmarks/position_step.py --model nano   # a minute of one core
"""

import argparse

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lightgen.core.draws import draw_key
from lightgen.models.student import Student
from lightgen.objectives.masked import MaskedConfig, draw_masking, masked_errors
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig
from lightgen.ports.nano.language import draw_prompt
from lightgen.ports.text import tokenize
from lightgen.stages.checkpoint import Parts, load_parts, load_transformer, open_checkpoint

SIDE, CHUNK, WORDS, SEED = 256, 8, 48, 99
MASKS = {"all hidden": 0.0, "hidden by 1 - |N(0, .3)|": 0.3}


def main() -> None:
    """Print a line for each distance and law of masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--steps", type=float, nargs="+", default=[1.0, 0.75, 0.5, 0.4])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = open_checkpoint(arguments.model).path
    parts = load_parts(folder)
    captions, latents = scenes(parts, arguments.pictures)
    for step in arguments.steps:
        student = Student(load_transformer(folder / "transformer", step), parts.text_encoder, False).eval()
        for law, spread in MASKS.items():
            found = errors(student, parts.tokenizer, captions, latents, spread)
            spread_of_mean = found.std() / len(found) ** 0.5
            print(f"distance {step:g}, {law}: {found.mean():.3f} +- {1.96 * spread_of_mean:.3f}")  # noqa: T201


@torch.inference_mode()
def scenes(parts: Parts, number: int) -> tuple[list[str], torch.Tensor]:
    """Captions, and latents [N, c, h, w] of perfect pictures of them."""
    teacher = EmojiTeacher(EmojiTeacherConfig(rotation_degrees=0.0, rotation_steps=1))
    captions = [draw_prompt(SEED, index, "train").prompt for index in range(number)]
    drawn = [
        teacher.draw(caption, draw_key(SEED, "s", index) >> 31, SIDE, SIDE).image
        for index, caption in enumerate(captions)
    ]
    pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return captions, torch.cat([parts.autoencoder.encode(chunk)[0] for chunk in pixels.split(CHUNK)])


@torch.inference_mode()
def errors(
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    captions: list[str],
    latents: torch.Tensor,
    spread: float,
) -> np.ndarray:
    """Masked error of each picture [N], with the text, at a law of masks."""
    head, config = student.transformer.head, MaskedConfig(text_drop=0.0, mask_spread=spread)
    length = latents.shape[2] * latents.shape[3] // student.transformer.shape.patch_size**2
    found = []
    for begin in range(0, len(captions), CHUNK):
        ids, mask = tokenize(tokenizer, captions[begin : begin + CHUNK], WORDS, WORDS)
        masking = draw_masking(config, 0, list(range(begin, begin + len(ids))), length, head)
        batch = {"latents": latents[begin : begin + CHUNK], "text_ids": ids, "text_mask": mask}
        found += masked_errors(student, batch, masking).mean((0, 2)).tolist()
    return np.array(found)


if __name__ == "__main__":
    main()
