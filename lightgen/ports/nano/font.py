"""The emoji font: where it is, and its glyphs as pictures."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightgen.core.config import environment
from lightgen.core.errors import UserError

FONT_VARIABLE = "LIGHTGEN_EMOJI_FONT"
# The font's bitmaps exist at this one size.
_SIZE = 109
_CANVAS = 160
_FONT_FILES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto-emoji/NotoColorEmoji.ttf",
    "/usr/local/share/fonts/NotoColorEmoji.ttf",
    "/opt/homebrew/share/fonts/NotoColorEmoji.ttf",
    "/Library/Fonts/NotoColorEmoji.ttf",
    "~/Library/Fonts/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
)


def find_font() -> Path:
    """Path of the Noto Color Emoji font: the file that LIGHTGEN_EMOJI_FONT names, else the first usual place.

    Raises:
        UserError: no font file was found.
    """
    named = environment(FONT_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise UserError(f"{FONT_VARIABLE}: no file {named!r}, expected the path of NotoColorEmoji.ttf")
        return path
    for candidate in _FONT_FILES:
        path = Path(candidate).expanduser()
        if path.is_file():
            return path
    raise UserError(
        "emoji font not found: on Debian or Ubuntu run 'sudo apt install fonts-noto-color-emoji'; "
        "on macOS and Windows download fonts/NotoColorEmoji.ttf from github.com/googlefonts/noto-emoji "
        f"and set {FONT_VARIABLE} to its path"
    )


@lru_cache(maxsize=4)
def _load(path: Path) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(str(path), _SIZE)
    except OSError as error:
        raise UserError(f"emoji font {path}: {error}, expected the bitmap font NotoColorEmoji.ttf") from error


def draw_glyph(emoji: str) -> np.ndarray:
    """Glyph [h, w, 4] uint8 (straight alpha), cropped to its visible box, at most 136 px a side.

    Raises:
        UserError: the font is missing, or has no colour glyph for it.
    """
    path = find_font()
    canvas = Image.new("RGBA", (_CANVAS, _CANVAS), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), emoji, font=_load(path), embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise UserError(f"emoji font {path} has no glyph for {emoji!r}, expected a recent Noto Color Emoji")
    glyph = np.asarray(canvas.crop(box))
    if not np.ptp(glyph[glyph[..., 3] == 255], axis=0).any():
        raise UserError(f"emoji font {path} draws in one colour, expected the bitmap font NotoColorEmoji.ttf")
    return glyph
