"""All first-order statistics of all labels from one pass over label map and image.

The pass fills a joint histogram (label by int16 value) and the counts per plane of each axis; volume, mean, SD, any
percentile, centroid, bounding box, border contact and the largest slice are look-ups in those tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.errors import NotAVolume
from heimdallr_ray.metrics import kernels
from heimdallr_ray.volume import LabelMap, Volume, require_same_grid


@dataclass(frozen=True)
class LabelStatistics:
    """What is known of one structure without looking at the voxels again.

    Attributes:
        name: structure.
        value: its value in the label map.
        n_voxels: at least 1.
        volume_ml: voxels times voxel volume.
        values: distinct image values inside, ascending.
        counts: voxels per distinct value.
        slice_counts: voxels per plane along i, j and k.
    """

    name: str
    value: int
    n_voxels: int
    volume_ml: float
    values: NDArray[Any]
    counts: NDArray[np.int64]
    slice_counts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

    @property
    def mean(self) -> float:
        """Arithmetic mean of the image inside."""
        return mean_sd(self.values, self.counts)[0]

    @property
    def sd(self) -> float:
        """Population standard deviation (divisor n) of the image inside."""
        return mean_sd(self.values, self.counts)[1]

    @property
    def minimum(self) -> float:
        """Smallest image value inside."""
        return float(self.values[0])

    @property
    def maximum(self) -> float:
        """Largest image value inside."""
        return float(self.values[-1])

    def percentile(self, percent: float) -> float:
        """The percentile by linear interpolation, as `numpy.percentile` gives it."""
        return percentile(self.values, self.counts, percent)

    @property
    def centroid_ijk(self) -> tuple[float, float, float]:
        """Mean voxel index."""
        i, j, k = (float(count @ np.arange(len(count))) / self.n_voxels for count in self.slice_counts)
        return i, j, k

    @property
    def box_ijk(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """First and last index along i, j, k, both inclusive."""
        i, j, k = ((int(np.argmax(c > 0)), len(c) - 1 - int(np.argmax(c[::-1] > 0))) for c in self.slice_counts)
        return i, j, k

    @property
    def borders(self) -> tuple[tuple[int, bool], ...]:
        """The array sides that the structure touches, as (array axis, True for the high end)."""
        return tuple(
            (axis, high) for axis, count in enumerate(self.slice_counts) for high in (False, True) if count[-int(high)]
        )

    def largest_slice(self, axis: int, *, ascending: bool) -> int:
        """Index along `axis` of the plane with most voxels; of several equal ones the middle one.

        `ascending` is the patient direction of the axis: with it an even number of equal planes gives the same physical
        plane in a flipped array.
        """
        count = self.slice_counts[axis]
        best = np.flatnonzero(count == count.max())
        return int(best[(len(best) - ascending) // 2])


def mean_sd(values: NDArray[Any], counts: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and population SD of `values` taken `counts` times; integers are summed exactly."""
    n = int(counts.sum())
    if np.issubdtype(values.dtype, np.integer):
        wide = values.astype(np.int64)
        total, squares = int(wide @ counts), int((wide * wide) @ counts)
        return total / n, sqrt(n * squares - total * total) / n
    precise = values.astype(np.float64)
    mean = float(precise @ counts) / n
    return mean, sqrt(float(((precise - mean) ** 2) @ counts) / n)


def percentile(values: NDArray[Any], counts: NDArray[np.int64], percent: float) -> float:
    """Percentile of ascending `values` taken `counts` times, by linear interpolation."""
    up_to = np.cumsum(counts)
    position = percent / 100.0 * (int(up_to[-1]) - 1)
    low = int(np.floor(position))
    high = min(low + 1, int(up_to[-1]) - 1)
    below, above = (float(values[np.searchsorted(up_to, rank, side="right")]) for rank in (low, high))
    return below + (position - low) * (above - below)


def memory_order(array: NDArray[Any]) -> tuple[int, int, int]:
    """The axes of `array` from longest to shortest stride."""
    a, b, c = sorted(range(3), key=lambda axis: (-abs(array.strides[axis]), axis))
    return a, b, c


def _rows(label_map: LabelMap) -> tuple[NDArray[np.int32], list[tuple[int, str]]]:
    named = sorted((value, name) for value, name in label_map.labels.items() if value > 0)
    rows = np.full(np.iinfo(label_map.array.dtype).max + 1, -1, dtype=np.int32)
    for row, (value, _) in enumerate(named):
        if value < len(rows):
            rows[value] = row
    return rows, named


def _from_int16(volume: Volume, label_map: LabelMap, tally: kernels.Tally) -> Mapping[str, LabelStatistics]:
    rows, named = _rows(label_map)
    order = memory_order(label_map.array)
    labels, image = label_map.array.transpose(order), volume.array.transpose(order)
    # calloc gives untouched pages for free, and real images touch few bins.
    histogram = np.zeros((len(named), kernels.N_BINS), dtype=np.uint32)
    planes = [np.zeros((len(named), n + (axis == 2)), dtype=np.int64) for axis, n in enumerate(labels.shape)]
    tally(labels, image, rows, histogram, *planes)
    planes[2] = np.cumsum(planes[2], axis=1)[:, :-1]
    by_axis = [planes[order.index(axis)] for axis in range(3)]
    found: dict[str, LabelStatistics] = {}
    for row, (value, name) in enumerate(named):
        n_voxels = int(by_axis[0][row].sum())
        if n_voxels:
            bins = np.flatnonzero(histogram[row])
            found[name] = LabelStatistics(
                name,
                value,
                n_voxels,
                n_voxels * label_map.voxel_ml,
                bins - kernels.INT16_OFFSET,
                histogram[row, bins].astype(np.int64),
                (by_axis[0][row], by_axis[1][row], by_axis[2][row]),
            )
    return found


def _from_float32(volume: Volume, label_map: LabelMap) -> Mapping[str, LabelStatistics]:
    found: dict[str, LabelStatistics] = {}
    rows, named = _rows(label_map)
    row_of = rows[label_map.array]
    where = np.nonzero(row_of >= 0)
    row, image = row_of[where], volume.array[where]
    if not np.isfinite(image).all():
        raise NotAVolume("not_finite", "the image holds values that are not numbers")
    order = np.argsort(row, kind="stable")
    ends = np.cumsum(np.bincount(row, minlength=len(named)))
    for index, (value, name) in enumerate(named):
        mine = order[ends[index - 1] if index else 0 : ends[index]]
        if mine.size:
            values, counts = np.unique(image[mine], return_counts=True)
            i, j, k = (
                np.bincount(where[axis][mine], minlength=volume.array.shape[axis]).astype(np.int64) for axis in range(3)
            )
            found[name] = LabelStatistics(
                name,
                value,
                int(mine.size),
                int(mine.size) * label_map.voxel_ml,
                values,
                counts.astype(np.int64),
                (i, j, k),
            )
    return found


def label_statistics(
    volume: Volume, label_map: LabelMap, *, tally: kernels.Tally = kernels.tally
) -> Mapping[str, LabelStatistics]:
    """Statistics of every named structure that has at least one voxel, by name.

    Neither array is copied, whatever its memory order.

    Raises:
        GeometryMismatch: label map and image are not on one grid.
        NotAVolume: `not_finite`: a float image holds NaN or infinity inside a structure.
    """
    require_same_grid(volume, label_map)
    if volume.array.dtype == np.int16:
        return _from_int16(volume, label_map, tally)
    return _from_float32(volume, label_map)
