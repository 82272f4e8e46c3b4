"""Draws the picture of docs/editing.md: pictures of the shipped model, masks, and what is painted there.

.venv/bin/python benchmarks/inpaint_sheet.py   # -> docs/inpaint.png, a minute of two cores
"""

import argparse

from PIL import Image, ImageDraw

from lightgen import LightGenPipeline

GAP, SEED = 8, 1
# (Prompt of the picture, prompt of what is painted, mask as shares of the side: left, top, right, bottom.)
EDITS = (
    ("a photo of a red apple left of a blue car", "a photo of a red apple and a brown dog", (0.5, 0, 1, 1)),
    ("a photo of a pizza", "a photo of a pizza and a cup", (0, 0, 1, 0.4)),
    ("a photo of a green umbrella", "a photo of a green umbrella", (0, 0, 1, 0.5)),
    ("a photo of two bears", "a photo of a bear and a cake", (0, 0.5, 1, 1)),
)


def main() -> None:
    """Write the sheet: above the pictures with the masks' outlines, below what came; unpicked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano-256")
    parser.add_argument("--out", default="docs/inpaint.png")
    arguments = parser.parse_args()
    pipeline = LightGenPipeline.from_pretrained(arguments.model)
    before = pipeline([before for before, _, _ in EDITS], seeds=[SEED + i for i in range(len(EDITS))]).images
    side = before[0].width
    sheet = Image.new("RGB", (len(EDITS) * (side + GAP) - GAP, 2 * side + GAP), "white")
    for i, (picture, (_, prompt, shares)) in enumerate(zip(before, EDITS, strict=True)):
        box = tuple(round(share * (side - 1)) for share in shares)
        mask = Image.new("L", (side, side), 0)
        ImageDraw.Draw(mask).rectangle(box, fill=255)
        after = pipeline(prompt, image=picture, mask_image=mask, seeds=[SEED + 10 + i]).images[0]
        shown = picture.copy()
        ImageDraw.Draw(shown).rectangle(box, outline="magenta", width=2)
        sheet.paste(shown, (i * (side + GAP), 0))
        sheet.paste(after, (i * (side + GAP), side + GAP))
    sheet.save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
