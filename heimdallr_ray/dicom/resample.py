"""Unevenly spaced slices onto a regular grid: linear between neighbouring slices, along their normal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def resampled(slices: NDArray[Any], places: Sequence[float], shear: tuple[float, float]) -> NDArray[Any]:
    """`[plane, row, column]` at the whole-numbered places; a plane at the place of a slice is that slice.

    Args:
        slices: `[slice, row, column]`, int16 or float32; the result has the same type, rounded for int16.
        places: ascending place of each slice in steps of the grid, the first 0, the last a whole number.
        shear: rows and columns that the grid moves within its planes from one plane to the next. What lies opposite a
            pixel along the normal is found that many pixels away, between pixels linearly; beyond the border counts
            what lies on it.
    """
    grid = np.empty((round(places[-1]) + 1, *slices.shape[1:]), slices.dtype)
    for plane, out in enumerate(grid):
        above = int(np.searchsorted(places, plane))
        if places[above] == plane:
            out[...] = slices[above]
            continue
        below = above - 1
        weight = (plane - places[below]) / (places[above] - places[below])
        blend = (1 - weight) * _opposite(slices[below], plane - places[below], shear)
        blend += weight * _opposite(slices[above], plane - places[above], shear)
        out[...] = np.rint(blend) if grid.dtype == np.int16 else blend
    return grid


def _opposite(pixels: NDArray[Any], planes_away: float, shear: tuple[float, float]) -> NDArray[np.float64]:
    """`[row, column]` values of one slice as seen along the normal from a plane of the grid."""
    rows = _shifted(pixels.astype(np.float64), planes_away * shear[0])
    return _shifted(rows.T, planes_away * shear[1]).T


def _shifted(lines: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """Line n becomes what lies `shift` lines behind it, between lines linearly; the outermost continue."""
    if abs(shift) < 1e-6:
        return lines
    count = len(lines)
    whole = int(np.floor(shift))
    near: NDArray[np.intp] = np.clip(np.arange(count, dtype=np.intp) + whole, 0, count - 1)
    far: NDArray[np.intp] = np.clip(np.arange(count, dtype=np.intp) + whole + 1, 0, count - 1)
    moved: NDArray[np.float64] = lines[near] * (1 - (shift - whole)) + lines[far] * (shift - whole)
    return moved
