"""Upstream's split of a large image into three overlapping parts along z, each of which a model sees alone.

`nnUNet_predict_image` does so for tasks of several models when the resampled image has more than 512 x 512 x 900
voxels. The labels differ from those of the whole near the seams, so identity asks for the same arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

THRESHOLD_VOXELS: Final = 512 * 512 * 900
_MIN_PLANES: Final = 200
_MARGIN: Final = 20


@dataclass(frozen=True)
class Piece:
    """Planes of the whole along z.

    Attributes:
        shown: what the model sees.
        kept: whose labels are used; inside `shown`.
    """

    shown: slice
    kept: slice

    @property
    def inner(self) -> slice:
        """`kept`, counted from the first shown plane."""
        return slice(self.kept.start - self.shown.start, self.kept.stop - self.shown.start)


def pieces(shape_zyx: tuple[int, ...], models: int, *, force: bool = False) -> tuple[Piece, ...]:
    """The parts of an image of this shape, one where it is not split.

    Args:
        shape_zyx: of the image at the model's spacing.
        models: how many models the task merges.
        force: split whatever the size (upstream's `force_split`); an image with too few planes for upstream's
            arithmetic, where upstream fails, stays whole.
    """
    depth, height, width = shape_zyx
    third = depth // 3
    large = depth * height * width > THRESHOLD_VOXELS and depth > _MIN_PLANES and models > 1
    possible = third + 1 >= _MARGIN and third * 2 + _MARGIN <= depth
    if not large and not (force and possible):
        return (Piece(slice(0, depth), slice(0, depth)),)
    return (
        Piece(slice(0, third + _MARGIN), slice(0, third)),
        Piece(slice(third + 1 - _MARGIN, third * 2 + _MARGIN), slice(third, third * 2)),
        Piece(slice(third * 2 + 1 - _MARGIN, depth), slice(third * 2, depth)),
    )
