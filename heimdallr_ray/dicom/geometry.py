"""Slices into a stack: order, spacing, tilt, gaps, duplicates, and the affine. Pure; DICOM's LPS frame, millimetres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom.header import Cosines, Triple
from heimdallr_ray.errors import NotAVolume

SAME_POSITION_MM: Final = 0.01
"""Slices closer than this lie at one position."""

POSITION_TOLERANCE_MM: Final = 0.11
"""Distance from the regular grid that any series may have: positions are often written with one decimal, which moves
the slice itself and the ends of the grid by 0.05 mm each."""

POSITION_TOLERANCE_SHARE: Final = 0.05
"""The same as a share of the slice spacing; the larger of both counts."""

UNEVEN_FLAG_MM: Final = 0.02
"""From here on the distance from the regular grid is flagged."""

COLLINEAR_TOLERANCE_MM: Final = 0.5
"""In-plane distance of a slice from the line through first and last."""

TILT_FLAG_DEG: Final = 0.1
"""Angle between the stacking direction and the slice normal from which a stack counts as tilted."""

MAX_TILT_DEG: Final = 60.0
"""Gantries tilt to 30 degrees; beyond this the positions do not describe a stack."""

MAX_MISSING_SLICES: Final = 2
MAX_MISSING_SHARE: Final = 0.02
"""More gaps than either are refused: a volume must not be measured over tissue that nobody imaged."""

DUPLICATE_SHARE: Final = 0.1
"""Up to this share of positions may be repeated by re-sent slices; beyond, it is an incomplete time series."""

MIN_SPACING_MM: Final = 0.01
MAX_SPACING_MM: Final = 100.0
"""Bounds of pixel spacing and slice distance that an image of a person can have."""

MAX_RESAMPLED_GAP_MM: Final = 10.0
"""Two slices further apart are never blended: between them lies tissue that nobody imaged."""

MAX_RESAMPLED_SHARE: Final = 8.0
"""A regular grid for unevenly spaced slices has at most this many places per slice."""

LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Stack:
    """Slices in order along the normal, on a regular grid or, where `places` says so, between its planes.

    Attributes:
        order: index into the given positions for each slice, ascending along the normal.
        grid_index: place of each slice on the grid, `[slice]`; gaps are missing slices. 0, 1, 2, ... with `places`.
        duplicates: (kept, dropped) indices into the given positions.
        step_lps: millimetres from one grid place to the next; not parallel to the normal where tilted.
        spacing_mm: distance between slice planes (along the normal).
        tilt_deg: angle between step and normal.
        uneven_mm: largest distance of a slice from its grid place along the normal.
        places: for unevenly spaced slices the true place of each on a regular grid that was laid through first and
            last, `[slice]`, in steps of the grid; empty where the slices themselves form the grid.
        gaps_mm: smallest and largest distance of neighbouring slice planes.
    """

    order: tuple[int, ...]
    grid_index: tuple[int, ...]
    duplicates: tuple[tuple[int, int], ...]
    origin_lps: Triple
    step_lps: Triple
    spacing_mm: float
    tilt_deg: float
    uneven_mm: float
    places: tuple[float, ...] = ()
    gaps_mm: tuple[float, float] = (0.0, 0.0)

    @property
    def slices(self) -> int:
        """Planes of the grid, those of missing slices included."""
        return round(self.places[-1]) + 1 if self.places else self.grid_index[-1] + 1

    @property
    def missing(self) -> tuple[int, ...]:
        """Grid places without a slice; none where the slices are resampled to the grid."""
        if self.places:
            return ()
        present = set(self.grid_index)
        return tuple(place for place in range(self.slices) if place not in present)

    @property
    def extent_mm(self) -> float:
        """From the first slice plane to the last."""
        return self.spacing_mm * (self.slices - 1)

    @property
    def flags(self) -> tuple[str, ...]:
        """What is unusual and nevertheless exact: `tilt:18.5`, `missing_slices:1`, `duplicate_slices:1`, ..."""
        found: list[str] = []
        if self.tilt_deg > TILT_FLAG_DEG:
            found.append(f"tilt:{self.tilt_deg:.1f}")
        if self.missing:
            found.append(f"missing_slices:{len(self.missing)}")
        if self.places:
            found.append(f"variable_spacing:{self.gaps_mm[0]:.2f}-{self.gaps_mm[1]:.2f}")
        if self.uneven_mm > UNEVEN_FLAG_MM:
            found.append(f"uneven_spacing:{self.uneven_mm:.2f}")
        if self.duplicates:
            found.append(f"duplicate_slices:{len(self.duplicates)}")
        return tuple(found)


def axes_of(iop: Cosines) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors in LPS: along a row, down a column, and the normal (PS3.3 section C.7.6.2.1.1).

    Raises:
        NotAVolume: `bad_orientation`: not two unit vectors at a right angle.
    """
    row, column = np.array(iop[:3]), np.array(iop[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if not all(abs(length - 1.0) < 0.01 for length in lengths) or abs(float(row @ column)) > 0.01:
        raise NotAVolume("bad_orientation", "image orientation is not two unit vectors at a right angle")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def distances_mm(positions: Sequence[Triple], iop: Cosines) -> NDArray[np.float64]:
    """Distance of each slice plane from the patient origin along the normal, `[slice]`."""
    found: NDArray[np.float64] = np.array(positions, dtype=np.float64) @ axes_of(iop)[2]
    return found


def repeats(distances: NDArray[np.float64]) -> tuple[int, ...]:
    """How many slices lie at each distinct position, ascending along the normal."""
    ordered = np.sort(distances)
    starts = np.flatnonzero(np.diff(ordered, prepend=-np.inf) > SAME_POSITION_MM)
    return tuple(int(count) for count in np.diff(np.append(starts, len(ordered))))


def stack(positions: Sequence[Triple], iop: Cosines, *, resample: bool = False) -> Stack:
    """The stack that slices at `positions` (Image Position (Patient), LPS mm) form.

    Of slices at one position the first given is kept.

    Args:
        positions: one per slice, in any order.
        iop: Image Orientation (Patient), the same for all.
        resample: unevenly spaced slices, and slices with gaps, become a stack with `places` instead of a refusal,
            as long as no gap is wider than MAX_RESAMPLED_GAP_MM.

    Raises:
        NotAVolume: `bad_orientation`, `bad_geometry`, `single_slice`, `four_d`, `incomplete_4d`, `variable_spacing`,
            `missing_slices`, `not_collinear`.
    """
    points = np.array(positions, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(points).all() or (points.size and float(np.abs(points).max()) > 1e5):
        raise NotAVolume("bad_geometry", "a slice position is not finite or lies beyond 100 m")
    normal = axes_of(iop)[2]
    order, duplicates = _ordered(points @ normal)
    if len(order) < 2:
        raise NotAVolume("single_slice", "one slice position is not a volume")
    points = points[order]
    try:
        found = _regular(points, normal)
    except NotAVolume as refused:
        if not resample or refused.reason not in ("variable_spacing", "missing_slices"):
            raise
        found = _uneven(points, normal, refused)
    if found.tilt_deg > MAX_TILT_DEG or not MIN_SPACING_MM <= found.spacing_mm <= MAX_SPACING_MM:
        raise NotAVolume(
            "bad_geometry", f"slices {found.spacing_mm:.3f} mm apart, {found.tilt_deg:.0f} degrees off their normal"
        )
    return replace(found, order=tuple(order), duplicates=tuple(duplicates))


def _regular(points: NDArray[np.float64], normal: NDArray[np.float64]) -> Stack:
    """Points in order, as places of the grid that they form, or a refusal."""
    distance = points @ normal
    grid = _grid_index(distance)
    step = (points[-1] - points[0]) / grid[-1]
    along, across = _off(points, points[0] + grid[:, np.newaxis] * step, normal)
    spacing = float(step @ normal)
    if along > max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_SHARE * spacing):
        raise _varies(distance)
    _require_line(across)
    found = _stack(points, normal, step, tuple(int(place) for place in grid), along)
    missing = len(found.missing)
    if missing > min(MAX_MISSING_SLICES, MAX_MISSING_SHARE * found.slices):
        raise NotAVolume("missing_slices", f"{missing} of {found.slices} slices are missing")
    return found


def _uneven(points: NDArray[np.float64], normal: NDArray[np.float64], refused: NotAVolume) -> Stack:
    """Points in order, with their true places on a grid that is at least as fine as their smallest distance.

    At that fineness the grid plane nearest to a slice has no nearer slice, so labels that go from the slices to the
    grid and back are unchanged.
    """
    distance = points @ normal
    gaps = np.diff(distance)
    extent = float(distance[-1] - distance[0])
    steps = math.ceil(extent / float(gaps.min()) - 1e-3)
    if float(gaps.max()) > MAX_RESAMPLED_GAP_MM or steps > MAX_RESAMPLED_SHARE * len(points):
        raise refused
    share = (distance - distance[0]) / extent
    _, across = _off(points, points[0] + share[:, np.newaxis] * (points[-1] - points[0]), normal)
    _require_line(across)
    found = _stack(points, normal, (points[-1] - points[0]) / steps, tuple(range(len(points))), 0.0)
    places = share * steps
    places[-1] = steps
    return replace(found, places=tuple(float(place) for place in places))


def _stack(
    points: NDArray[np.float64],
    normal: NDArray[np.float64],
    step: NDArray[np.float64],
    grid_index: tuple[int, ...],
    uneven_mm: float,
) -> Stack:
    gaps = np.diff(points @ normal)
    spacing = float(step @ normal)
    return Stack(
        order=(),
        grid_index=grid_index,
        duplicates=(),
        origin_lps=_triple(points[0]),
        step_lps=_triple(step),
        spacing_mm=spacing,
        tilt_deg=math.degrees(math.acos(min(1.0, spacing / float(np.linalg.norm(step))))),
        uneven_mm=uneven_mm,
        gaps_mm=(float(gaps.min()), float(gaps.max())),
    )


def _off(
    points: NDArray[np.float64], expected: NDArray[np.float64], normal: NDArray[np.float64]
) -> tuple[float, float]:
    """Largest distance in mm between the points and where they are expected, along the normal and in the plane."""
    off = points - expected
    across = np.linalg.norm(off - (off @ normal)[:, np.newaxis] * normal, axis=1)
    return float(np.abs(off @ normal).max()), float(across.max())


def _require_line(across_mm: float) -> None:
    if across_mm > COLLINEAR_TOLERANCE_MM:
        raise NotAVolume("not_collinear", f"slices lie up to {across_mm:.1f} mm beside their line")


def _varies(distance: NDArray[np.float64]) -> NotAVolume:
    gaps = np.diff(distance)
    return NotAVolume("variable_spacing", f"slice distances vary from {gaps.min():.3f} to {gaps.max():.3f} mm")


def affine_ras(found: Stack, iop: Cosines, pixel_spacing: tuple[float, float]) -> NDArray[np.float64]:
    """4 x 4 map from (column, row, slice) to RAS mm; a tilted stack keeps its shear in the third column.

    Raises:
        NotAVolume: `bad_spacing`, `bad_orientation`.
    """
    between_rows, between_columns = pixel_spacing
    if not all(MIN_SPACING_MM <= value <= MAX_SPACING_MM for value in pixel_spacing):
        raise NotAVolume("bad_spacing", f"pixel spacing {between_rows} x {between_columns} mm")
    row, column, _ = axes_of(iop)
    lps = np.eye(4)
    lps[:3, 0] = row * between_columns
    lps[:3, 1] = column * between_rows
    lps[:3, 2] = found.step_lps
    lps[:3, 3] = found.origin_lps
    ras: NDArray[np.float64] = LPS_TO_RAS @ lps
    return ras


def _ordered(distance: NDArray[np.float64]) -> tuple[list[int], list[tuple[int, int]]]:
    counts = repeats(distance)
    if len(counts) > 1 and min(counts) > 1:
        raise NotAVolume("four_d", f"each of {len(counts)} positions was imaged {min(counts)} times or more")
    extra = sum(count - 1 for count in counts)
    if extra > 1 and extra > DUPLICATE_SHARE * len(counts) and len(counts) > 1:
        raise NotAVolume("incomplete_4d", f"{extra} slices repeat positions of {len(counts)}")
    order: list[int] = []
    duplicates: list[tuple[int, int]] = []
    by_distance = [int(index) for index in np.argsort(distance, kind="stable")]
    at = 0
    for count in counts:
        first, *others = sorted(by_distance[at : at + count])
        order.append(first)
        duplicates.extend((first, other) for other in others)
        at += count
    return order, duplicates


def _grid_index(distance: NDArray[np.float64]) -> NDArray[np.int64]:
    gaps = np.diff(distance)
    usual = float(np.median(gaps))
    steps = np.rint(gaps / usual).astype(np.int64)
    wide = int((steps > 1).sum())
    if int(steps.min()) < 1 or wide > max(MAX_MISSING_SLICES, DUPLICATE_SHARE * len(gaps)):
        raise _varies(distance)
    grid: NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), np.cumsum(steps)])
    return grid


def _triple(vector: NDArray[Any]) -> Triple:
    x, y, z = (float(value) for value in vector)
    return x, y, z
