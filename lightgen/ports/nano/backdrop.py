"""What lies behind the objects of a scene, and the styles that change a whole picture."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.ports.nano.world import BACKGROUNDS

# Light, muted colours; a few middle ones for objects that are pale themselves.
_PLAIN = np.array(
    [
        (236, 229, 216), (226, 232, 238), (230, 238, 226), (240, 226, 226), (234, 226, 240), (244, 240, 220),
        (216, 226, 222), (222, 216, 210), (204, 218, 230), (228, 210, 200), (212, 222, 200), (214, 206, 224),
        (240, 216, 196), (198, 210, 208), (246, 244, 240), (190, 200, 216), (176, 190, 178), (196, 180, 172),
        (168, 180, 196), (188, 176, 196), (160, 176, 176), (184, 172, 150), (200, 196, 190), (170, 170, 178),
    ],
    np.float32,
)  # fmt: skip
_APART = 105.0
_VARIANTS = 6
_STARS = np.array((22, 28, 62), np.float32)
_NIGHT_SHARE = np.array((0.22, 0.27, 0.46), np.float32)
_NIGHT_LEAST = np.array((6, 8, 22), np.float32)


def draw_backdrop(
    background: str | None,
    height: int,
    width: int,
    gradient: float,
    avoid: Sequence[tuple[float, float, float]],
    random: np.random.Generator,
) -> np.ndarray:
    """Background [height, width, 3] uint8 to draw on; one left open keeps apart from the RGB to avoid."""
    if background is not None:
        return _scenery(background, height, width, int(random.integers(_VARIANTS))).copy()
    first = _apart(avoid, random)
    if random.random() >= gradient:
        return np.broadcast_to(first.astype(np.uint8), (height, width, 3)).copy()
    second = _apart(avoid, random)
    ramp = _ramp(height, width, int(random.integers(8)))
    return (first + ramp * (second - first)).astype(np.uint8)


def _apart(avoid: Sequence[tuple[float, float, float]], random: np.random.Generator) -> np.ndarray:
    """Colour [3] float32 of the palette, a little varied, well apart from every colour to avoid."""
    distances = np.linalg.norm(_PLAIN[:, None] - np.asarray(avoid, np.float32)[None], axis=-1).min(1)
    allowed = np.flatnonzero(distances >= min(_APART, float(np.sort(distances)[-3])))
    color = _PLAIN[allowed[int(random.integers(len(allowed)))]]
    return np.clip(color + random.uniform(-8, 8, 3).astype(np.float32), 0, 255)


@lru_cache(maxsize=32)
def _ramp(height: int, width: int, direction: int) -> np.ndarray:
    """Ramp [height, width, 1] float32 from 0 to 1 in one of eight directions."""
    angle = direction * np.pi / 4
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    ramp = np.cos(angle) * columns / width + np.sin(angle) * rows / height
    return ((ramp - ramp.min()) / np.ptp(ramp)).astype(np.float32)[..., None]


@lru_cache(maxsize=64)
def _scenery(background: str, height: int, width: int, variant: int) -> np.ndarray:
    """Scenery [height, width, 3] uint8, one of a few variants."""
    assert background in BACKGROUNDS, background
    random = numpy_draws(variant, f"scenery/{background}")
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    columns = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    jitter = random.uniform(-10, 10, 3).astype(np.float32)
    if background == "stars":
        image = _STARS + rows * np.array((24, 26, 50), np.float32) + jitter * 0.4 + 0 * columns
        size = max(1, min(height, width) // 100)
        for y, x, light in random.random((40, 3)):
            top, left = int(y * (height - size)), int(x * (width - size))
            image[top : top + size, left : left + size] = 140 + 115 * light
        return np.clip(image, 0, 255).astype(np.uint8)
    tops = {
        "grass": ((150, 202, 244), (212, 232, 248)),
        "beach": ((166, 214, 246), (226, 240, 250)),
        "snow": ((150, 178, 214), (206, 220, 238)),
        "room": ((222, 210, 190), (232, 222, 206)),
    }
    grounds = {
        "grass": ((140, 196, 104), (104, 166, 76)),
        "beach": ((238, 220, 170), (228, 204, 146)),
        "snow": ((226, 232, 242), (208, 216, 232)),
        "room": ((178, 140, 104), (156, 118, 84)),
    }
    horizon = float(random.uniform(0.42, 0.62))
    if background == "room":
        horizon += 0.12
    hills = 0.02 * np.sin(columns * random.uniform(4, 9) + random.uniform(0, 6))
    edge = horizon + hills * (background in ("grass", "snow"))
    top_a, top_b = (np.array(color, np.float32) + jitter for color in tops[background])
    low_a, low_b = (np.array(color, np.float32) - jitter for color in grounds[background])
    upper = top_a + rows / horizon * (top_b - top_a)
    lower = low_a + (rows - horizon) / (1 - horizon) * (low_b - low_a)
    image = np.where(rows < edge, upper, lower)
    if background == "beach":
        sea = np.array((84, 160, 204), np.float32) + jitter
        image = np.where((rows >= edge - 0.14) & (rows < edge), sea, image)
    if background == "room":
        image = np.where(np.abs(rows - edge) < 0.012, np.float32(244), image)
    return np.clip(image, 0, 255).astype(np.uint8)


def darken_backdrop(image: np.ndarray) -> np.ndarray:
    """The background [H, W, 3] uint8 by night: dark and bluish."""
    gray = image.astype(np.float32).mean(-1, keepdims=True)
    muted = 0.5 * gray + 0.5 * image
    return (muted * _NIGHT_SHARE + _NIGHT_LEAST).astype(np.uint8)


def apply_style(image: np.ndarray, style: str) -> np.ndarray:
    """The whole picture [H, W, 3] uint8 in a style."""
    if style == "sketch":
        return _sketch(image)
    if style == "pixel":
        return _pixelate(image)
    if style == "night":
        return (image * np.array((0.8, 0.82, 0.95), np.float32)).astype(np.uint8)
    return image


def _pixelate(image: np.ndarray) -> np.ndarray:
    """Blocks of one 40th of the shorter side, with few levels of colour."""
    height, width = image.shape[:2]
    block = max(2, min(height, width) // 40)
    small = Image.fromarray(image).resize((-(-width // block), -(-height // block)), Image.Resampling.BOX)
    coarse = np.asarray(small).astype(np.float32)
    coarse = np.clip(np.round(coarse / 24) * 24, 0, 255).astype(np.uint8)
    return coarse.repeat(block, 0).repeat(block, 1)[:height, :width].copy()


@lru_cache(maxsize=8)
def _hatching(height: int, width: int) -> np.ndarray:
    """Strokes [height, width, 1] float32 around 1, as of a pencil on rough paper."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    grain = numpy_draws(0, "hatching").normal(0, 0.05, (height, width)).astype(np.float32)
    return (1 + 0.1 * np.sin((columns + rows) * 1.6) + grain)[..., None]


def _sketch(image: np.ndarray) -> np.ndarray:
    """Coloured pencil on paper: pale hatched colours with dark lines at edges."""
    values = image.astype(np.float32)
    gray = values.mean(-1)
    lines = np.zeros_like(gray)
    lines[1:] += np.abs(np.diff(gray, axis=0))
    lines[:, 1:] += np.abs(np.diff(gray, axis=1))
    ink = np.clip(lines / 70, 0, 1)[..., None]
    gap = (250 - values) * 0.68 * _hatching(*gray.shape)
    paper = 250 - gap
    return np.clip(paper * (1 - ink) + 45 * ink, 0, 255).astype(np.uint8)
