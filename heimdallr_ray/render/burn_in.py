"""What is burned into a picture: outlines, side letters, text and warnings. Pillow's own font, so bytes repeat."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from heimdallr_ray.render.slices import Display

NOTICE = "AI - not for diagnosis"
SYNTHETIC_NOTICE = "DEMO WEIGHTS - SYNTHETIC"
FILL = 0.28
"""Opacity of the colour inside an outline: the grey values below stay readable."""
MIN_SIDE = 200
"""A narrower picture is padded with black, or the burned-in text would not fit."""

Colour = tuple[int, int, int]
YELLOW: Colour = (255, 214, 64)
WHITE: Colour = (235, 235, 235)
RED: Colour = (255, 96, 64)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: Colour, anchor: str
) -> None:
    draw.text(at, text, font=_font(size), fill=colour, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _fitting(text: str, size: int, width: int) -> int:
    """The largest font size up to `size` at which `text` is not wider than `width`."""
    length = _font(size).getlength(text)
    return size if length <= width else max(8, int(size * width / length))


def _annotate(image: Image.Image, display: Display, lines: Sequence[str], *, synthetic: bool) -> None:
    draw = ImageDraw.Draw(image)
    width, height = image.size
    left, right, top, bottom = display.letters
    for row, line in enumerate(lines):
        _write(draw, (8, 6 + 19 * row), line, _fitting(line, 15, width - 32), WHITE, "la")
    _write(draw, (6, height / 2), left, 22, YELLOW, "lm")
    _write(draw, (width - 6, height / 2), right, 22, YELLOW, "rm")
    _write(draw, (width - 8, 6), top, 15, YELLOW, "ra")
    _write(draw, (width - 8, height - 6), bottom, 15, YELLOW, "rd")
    warnings = [(NOTICE, WHITE), *([(SYNTHETIC_NOTICE, RED)] if synthetic else [])]
    for row, (warning, colour) in enumerate(reversed(warnings)):
        _write(draw, (8, height - 6 - 20 * row), warning, _fitting(warning, 15, width - 32), colour, "ld")


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of the mask that have a neighbour outside, two pixels wide."""
    padded = np.pad(mask, 2)
    inner = mask.copy()
    rows, columns = mask.shape
    for d_row, d_column in ((-2, 0), (-1, 0), (1, 0), (2, 0), (0, -2), (0, -1), (0, 1), (0, 2)):
        inner &= padded[2 + d_row : 2 + d_row + rows, 2 + d_column : 2 + d_column + columns]
    return mask & ~inner


def coloured(grey: NDArray[np.uint8], labels: NDArray[Any], colours: Mapping[int, Colour]) -> NDArray[np.uint8]:
    """The grey picture `[row, column, rgb]` with each label filled lightly and outlined.

    Args:
        grey: `[row, column]` uint8.
        labels: `[row, column]` label values.
        colours: by label value; others are not drawn.
    """
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    for value, colour in sorted(colours.items()):
        mask = labels == value
        if not mask.any():
            continue
        tint = np.array(colour, dtype=np.float32)
        picture[mask] = np.rint(picture[mask] * (1.0 - FILL) + tint * FILL).astype(np.uint8)
        picture[_outline(mask)] = colour
    return picture


def png(pixels: NDArray[np.uint8], display: Display, lines: Sequence[str], *, synthetic: bool) -> bytes:
    """The PNG of grey `[row, column]` or coloured `[row, column, rgb]` pixels with everything burned in.

    Args:
        pixels: uint8.
        display: says which letter belongs to which side.
        lines: text at the top left.
        synthetic: burn in SYNTHETIC_NOTICE too.
    """
    image = Image.fromarray(pixels).convert("RGB")
    if min(image.size) < MIN_SIDE:
        width, height = (max(MIN_SIDE, side) for side in image.size)
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        image = canvas
    _annotate(image, display, lines, synthetic=synthetic)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
