"""One slice of a grid as a radiologist expects to see it, whatever the order of the array's axes.

Axial and coronal slices show the patient's right on the left of the picture, anterior or superior on top; sagittal
ones show anterior on the left. Directions come from the affine only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from heimdallr_ray.volume import spacing_mm_of


class Plane(StrEnum):
    """The plane a slice lies in; named after the RAS axis that its array axis is nearest to."""

    SAGITTAL = "sagittal"
    CORONAL = "coronal"
    AXIAL = "axial"


PLANES = (Plane.SAGITTAL, Plane.CORONAL, Plane.AXIAL)

_LAYOUT: dict[int, tuple[int, bool, int, bool]] = {
    # normal RAS axis: row axis, rows run towards the low end, column axis, columns run towards the low end
    0: (2, True, 1, True),
    1: (2, True, 0, True),
    2: (1, True, 0, True),
}
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Display:
    """How to turn slices of a grid along one array axis into pictures.

    Attributes:
        plane: of the slices.
        axis: array axis along which they are stacked.
        n_slices: how many there are.
        transpose: rows and columns must be swapped after taking a slice.
        flip_rows: and then the rows reversed.
        flip_columns: and the columns.
        row_mm: distance between rows.
        column_mm: distance between columns.
        letters: patient directions at the left, right, top and bottom edge of the picture.
        ascending: a larger index lies further towards the right, anterior or superior side.
    """

    plane: Plane
    axis: int
    n_slices: int
    transpose: bool
    flip_rows: bool
    flip_columns: bool
    row_mm: float
    column_mm: float
    letters: tuple[str, str, str, str]
    ascending: bool

    def of(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """The slice `index` of `array` as `[row, column]`, a view."""
        taken = array[(slice(None),) * self.axis + (index,)]
        taken = taken.T if self.transpose else taken
        return taken[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def number(self, index: int) -> int:
        """The slice number shown to a person: 1 is the most inferior, posterior or left slice."""
        return index + 1 if self.ascending else self.n_slices - index


def display_of(shape: tuple[int, ...], affine_ras: NDArray[np.float64], axis: int) -> Display:
    """How to show the slices stacked along array axis `axis`."""
    found = cast("NDArray[Any]", cast(Any, orientations).io_orientation(affine_ras))
    patient = [int(value) for value in found[:, 0]]
    ascending = [bool(flip > 0) for flip in found[:, 1]]
    row_patient, rows_down, column_patient, columns_down = _LAYOUT[patient[axis]]
    row, column = patient.index(row_patient), patient.index(column_patient)
    spacing = spacing_mm_of(affine_ras)
    top, bottom = (_LETTERS[row_patient][int(rows_down)], _LETTERS[row_patient][int(not rows_down)])
    left, right = (_LETTERS[column_patient][int(columns_down)], _LETTERS[column_patient][int(not columns_down)])
    return Display(
        plane=PLANES[patient[axis]],
        axis=axis,
        n_slices=shape[axis],
        transpose=row > column,
        flip_rows=ascending[row] == rows_down,
        flip_columns=ascending[column] == columns_down,
        row_mm=spacing[row],
        column_mm=spacing[column],
        letters=(left, right, top, bottom),
        ascending=ascending[axis],
    )


def axis_of(affine_ras: NDArray[np.float64], plane: Plane) -> int:
    """The array axis along which slices of `plane` are stacked."""
    found = cast("NDArray[Any]", cast(Any, orientations).io_orientation(affine_ras))
    return [int(value) for value in found[:, 0]].index(PLANES.index(plane))


@dataclass(frozen=True)
class Window:
    """Grey values: `centre` minus and plus half of `width` become black and white."""

    centre: float
    width: float


ABDOMEN = Window(50.0, 400.0)
BRAIN = Window(40.0, 80.0)
OVERVIEW = Window(40.0, 800.0)


def auto_window(image: NDArray[Any]) -> Window:
    """A window for a slice without Hounsfield units: from its 1st to its 99th percentile."""
    finite = image[np.isfinite(image)]
    if not finite.size:
        return Window(0.0, 1.0)
    low, high = (float(value) for value in np.percentile(finite, (1.0, 99.0)))
    return Window((low + high) / 2.0, max(high - low, 1.0))


def windowed(image: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Grey levels 0 to 255, linear inside the window and clipped outside (PS3.3 C.11.2.1.3.2, LINEAR_EXACT)."""
    low = window.centre - window.width / 2.0
    scaled = (image.astype(np.float32) - np.float32(low)) * np.float32(255.0 / window.width)
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0.0, 255.0)).astype(np.uint8)


def picture_size(rows: int, columns: int, display: Display, longest: int = 640) -> tuple[int, int]:
    """Width and height in square pixels, the longer side being `longest`: millimetres keep their proportion."""
    width_mm, height_mm = columns * display.column_mm, rows * display.row_mm
    scale = longest / max(width_mm, height_mm)
    return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
