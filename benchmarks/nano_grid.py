"""Draws the README's picture: test prompts by the shipped model, each under its picture.

.venv/bin/python benchmarks/nano_grid.py
.venv/bin/python benchmarks/nano_grid.py --model nano-256 --rows 2 --out docs/nano-256-grid.png
"""

import argparse

from PIL import Image, ImageDraw, ImageFont

from lightgen import LightGenPipeline
from lightgen.ports.nano.language import draw_prompt

COLUMNS, TEXT, GAP = 6, 30, 8


def main() -> None:
    """Write the grid: the first test prompts in order, unpicked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--out", default="docs/nano-grid.png")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    prompts = [draw_prompt(arguments.seed, i, "test").prompt for i in range(COLUMNS * arguments.rows)]
    images = LightGenPipeline.from_pretrained(arguments.model)(prompts, seeds=range(len(prompts))).images
    side = images[0].width
    width, height = COLUMNS * (side + GAP) + GAP, arguments.rows * (side + TEXT + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        x, y = GAP + i % COLUMNS * (side + GAP), GAP + i // COLUMNS * (side + TEXT + GAP)
        sheet.paste(image, (x, y))
        pen.multiline_text((x, y + side + 2), wrap(prompt.removeprefix("a photo of ")), "black", font)
    sheet.save(arguments.out, optimize=True)


def wrap(text: str, width: int = 23) -> str:
    """Text on at most two lines."""
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width + 1)
    return f"{text[:cut]}\n{text[cut + 1 :]}"


if __name__ == "__main__":
    main()
