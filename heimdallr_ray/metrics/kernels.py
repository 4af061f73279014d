"""The inner loops, compiled where numba is there, and their numpy twins with identical results.

Arrays arrive with their axes permuted to memory order (longest stride first), whatever that order is in patient space.
The machine code is made anew in each process and never kept on disk: docs/decisions/003-numba-cache.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

INT16_OFFSET = 32768
N_BINS = 65536
"""One bin per int16 value: no voxel falls outside, so nothing is clipped and every percentile is exact."""

Tally = Callable[..., None]


def _compiled(function: Callable[..., Any], signatures: Callable[[Any], list[Any]]) -> Callable[..., Any] | None:
    """`function` as machine code that releases the GIL, or None where numba is not installed.

    One signature per label type, for any memory layout: a new layout or a read-only array from the object store must
    not cost a compilation in the middle of a study.
    """
    try:
        import numba
    except ImportError:
        return None
    numba_any = cast(Any, numba)
    njit = cast("Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]", numba_any.njit)
    return njit(signatures(numba_any.types), nogil=True)(function)


def _tally_loop(
    labels: NDArray[Any],
    image: NDArray[Any],
    rows: NDArray[Any],
    histogram: NDArray[Any],
    along_0: NDArray[Any],
    along_1: NDArray[Any],
    along_2: NDArray[Any],
) -> None:
    n_0, n_1, n_2 = labels.shape
    for a in range(n_0):
        for b in range(n_1):
            c = 0
            while c < n_2:
                value = labels[a, b, c]
                if value == 0:
                    c += 1
                    continue
                row = rows[value]
                start = c
                if row < 0:
                    while c < n_2 and labels[a, b, c] == value:
                        c += 1
                    continue
                while c < n_2 and labels[a, b, c] == value:
                    histogram[row, image[a, b, c] + 32768] += 1
                    c += 1
                along_0[row, a] += c - start
                along_1[row, b] += c - start
                # A difference array: its running sum is the count per plane, at two writes per run.
                along_2[row, start] += 1
                along_2[row, c] -= 1


def _erode_loop(mask: NDArray[Any], offsets: NDArray[Any], kept: NDArray[Any]) -> None:
    n_0, n_1, n_2 = mask.shape
    for a in range(n_0):
        for b in range(n_1):
            for c in range(n_2):
                if mask[a, b, c]:
                    continue
                # The nearest background voxel of any mask voxel has a mask voxel as a face neighbour.
                if not (
                    (a > 0 and mask[a - 1, b, c])
                    or (a + 1 < n_0 and mask[a + 1, b, c])
                    or (b > 0 and mask[a, b - 1, c])
                    or (b + 1 < n_1 and mask[a, b + 1, c])
                    or (c > 0 and mask[a, b, c - 1])
                    or (c + 1 < n_2 and mask[a, b, c + 1])
                ):
                    continue
                for n in range(offsets.shape[0]):
                    x = a + offsets[n, 0]
                    y = b + offsets[n, 1]
                    z = c + offsets[n, 2]
                    if x >= 0 and y >= 0 and z >= 0 and x < n_0 and y < n_1 and z < n_2:
                        kept[x, y, z] = False


def _tally_signatures(types: Any) -> list[Any]:  # noqa: ANN401 numba has no stubs
    def read(dtype: Any) -> Any:  # noqa: ANN401
        return types.Array(dtype, 3, "A", readonly=True)

    table = types.Array(types.int64, 2, "C")
    rest = (types.Array(types.int32, 1, "C"), types.Array(types.uint32, 2, "C"), table, table, table)
    return [types.void(read(dtype), read(types.int16), *rest) for dtype in (types.uint8, types.uint16)]


def _erode_signatures(types: Any) -> list[Any]:  # noqa: ANN401
    mask = types.Array(types.boolean, 3, "A", readonly=True)
    return [types.void(mask, types.Array(types.int64, 2, "C"), types.Array(types.boolean, 3, "A"))]


@cache
def _tally_compiled() -> Tally | None:
    return _compiled(_tally_loop, _tally_signatures)


@cache
def _erode_compiled() -> Callable[..., None] | None:
    return _compiled(_erode_loop, _erode_signatures)


def warm_up() -> bool:
    """The machine code is ready, after about a second of compiling; False where numba is not installed."""
    return _tally_compiled() is not None and _erode_compiled() is not None


def tally_numpy(
    labels: NDArray[Any],
    image: NDArray[np.int16],
    rows: NDArray[np.int32],
    histogram: NDArray[np.uint32],
    along_0: NDArray[np.int64],
    along_1: NDArray[np.int64],
    along_2: NDArray[np.int64],
) -> None:
    """As `tally`, plane by plane in numpy."""
    n_rows, _, n_2 = len(histogram), labels.shape[1], labels.shape[2]
    for a in range(labels.shape[0]):
        row_of = rows[labels[a]]
        b, c = np.nonzero(row_of >= 0)
        row = row_of[b, c]
        if not row.size:
            continue
        key = row.astype(np.int64) * N_BINS + image[a][b, c].astype(np.int64) + INT16_OFFSET
        values, counts = np.unique(key, return_counts=True)
        histogram.reshape(-1)[values] += counts.astype(np.uint32)
        along_0[:, a] += np.bincount(row, minlength=n_rows)
        n_1 = labels.shape[1]
        along_1 += np.bincount(row * n_1 + b, minlength=n_rows * n_1).reshape(n_rows, n_1)
        planes = np.bincount(row * n_2 + c, minlength=n_rows * n_2).reshape(n_rows, n_2)
        along_2[:, :n_2] += np.diff(planes, axis=1, prepend=0)


def tally(
    labels: NDArray[Any],
    image: NDArray[np.int16],
    rows: NDArray[np.int32],
    histogram: NDArray[np.uint32],
    along_0: NDArray[np.int64],
    along_1: NDArray[np.int64],
    along_2: NDArray[np.int64],
) -> None:
    """The tables hold the counts of every labelled voxel.

    Args:
        labels: `[a, b, c]` uint8 or uint16, 0 is background.
        image: `[a, b, c]` int16.
        rows: row of the tables per label value, -1 for values to pass over.
        histogram: `[row, value + INT16_OFFSET]`, filled here.
        along_0: `[row, a]` voxels per plane, filled here.
        along_1: `[row, b]`, filled here.
        along_2: `[row, c]` with one column more than planes, filled here as a difference array.
    """
    (_tally_compiled() or tally_numpy)(labels, image, rows, histogram, along_0, along_1, along_2)


def erode_numpy(mask: NDArray[np.bool_], offsets: NDArray[np.int64], kept: NDArray[np.bool_]) -> None:
    """As `erode`, one shifted AND per offset in numpy."""
    for offset in offsets.tolist():
        here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(offset, mask.shape, strict=True))
        there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(offset, mask.shape, strict=True))
        kept[here] &= mask[there]


def erode(mask: NDArray[np.bool_], offsets: NDArray[np.int64], kept: NDArray[np.bool_]) -> None:
    """`kept` (a copy of `mask` on entry) has lost each voxel with background at one of `offsets`.

    Beyond the array's edge nothing is known, and nothing is eroded from there. `offsets` must be symmetric (a ball).
    """
    (_erode_compiled() or erode_numpy)(mask, offsets, kept)
