"""Compiled loops of the engine. Each does the floating point operations of what it replaces, in the same order.

Compiled once per process on first use (`compile_all`), run without the GIL on slabs by `run_slabs`. They are plain
functions over arrays: callers own all memory.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

_njit: Any = numba.njit
_intrinsic: Any = intrinsic
_types: Any = types
_ir: Any = ir


def has_half_conversion() -> bool:
    """True where the processor converts between float16 and float32 itself (F16C, or any AArch64)."""
    if platform.machine() in ("aarch64", "arm64"):
        return True
    features = cast("dict[str, bool]", cast(Any, llvm).get_host_cpu_features())
    return features.get("f16c", False)


@_intrinsic
def _half_to_float(_context: Any, _bits: Any) -> Any:  # noqa: ANN401
    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:  # noqa: ANN401
        return builder.fpext(builder.bitcast(args[0], _ir.HalfType()), _ir.FloatType())

    return _types.float32(_types.uint16), generate


@_intrinsic
def _float_to_half(_context: Any, _value: Any) -> Any:  # noqa: ANN401
    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:  # noqa: ANN401
        return builder.bitcast(builder.fptrunc(args[0], _ir.HalfType()), _ir.IntType(16))

    return _types.uint16(_types.float32), generate


def _accumulate(
    ring: NDArray[np.uint16],
    prediction: NDArray[np.float32],
    weight: NDArray[np.float32],
    start: tuple[int, int, int],
    first: int,
    last: int,
) -> None:
    """`ring[c] += prediction[c] * weight` at `start` for channels first..last-1; the ring's last channel sums weight.

    Args:
        ring: float16 bits `[channel + 1, depth, y, x]`; plane z of the volume lives at `z % depth`.
        prediction: `[channel, pz, py, px]`.
        weight: `[pz, py, px]`.
        start: corner of the tile in the volume.
        first: first channel of this call.
        last: one past its last channel.
    """
    channels = ring.shape[0] - 1
    depth = ring.shape[1]
    pz, py, px = weight.shape
    z0, y0, x0 = start
    for c in range(first, last):
        for z in range(pz):
            plane = (z0 + z) % depth
            for y in range(py):
                target = ring[c, plane, y0 + y, x0 : x0 + px]
                w = weight[z, y]
                if c == channels:
                    for x in range(px):
                        target[x] = _float_to_half(_half_to_float(target[x]) + w[x])
                else:
                    p = prediction[c, z, y]
                    for x in range(px):
                        target[x] = _float_to_half(_half_to_float(target[x]) + p[x] * w[x])


def _settle(
    ring: NDArray[np.uint16],
    labels: NDArray[np.uint8],
    z_range: tuple[int, int],
    first: int,
    last: int,
) -> bool:
    """Labels of finished planes: first index of the largest `half(sum / weight)`; the planes are zeroed for reuse.

    Args:
        ring: float16 bits `[channel + 1, depth, y * x]`, as `_accumulate` left it.
        labels: `[z, y * x]`, written.
        z_range: finished planes of the volume.
        first: first in-plane position of this call.
        last: one past its last.

    Returns:
        False where a quotient is infinite or not a number.
    """
    channels = ring.shape[0] - 1
    depth = ring.shape[1]
    n = last - first
    best = np.empty(n, np.float32)
    weight = np.empty(n, np.float32)
    arg = np.empty(n, np.int32)
    # 0 * q stays 0 unless q is infinite or not a number
    poison = np.zeros(n, np.float32)
    for z in range(z_range[0], z_range[1]):
        plane = z % depth
        out = labels[z, first:last]
        w = ring[channels, plane, first:last]
        for i in range(n):
            weight[i] = _half_to_float(w[i])
            w[i] = 0
            best[i] = -np.inf
            arg[i] = 0
        for c in range(channels):
            row = ring[c, plane, first:last]
            for i in range(n):
                q = _half_to_float(_float_to_half(_half_to_float(row[i]) / weight[i]))
                poison[i] += q * np.float32(0.0)
                bigger = q > best[i]
                best[i] = q if bigger else best[i]
                arg[i] = np.int32(c) if bigger else arg[i]
                row[i] = 0
        for i in range(n):
            out[i] = np.uint8(arg[i])
    return not np.isnan(poison).any()


def _zoom_linear(
    image: NDArray[Any],
    out: NDArray[np.float32],
    low: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    high: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    w_low: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    w_high: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    first: int,
    last: int,
) -> None:
    """scipy.ndimage.zoom(order=1, mode="nearest") in float64, truncated to int32, as float32.

    The products are ((v * wx) * wy) * wz and their sum runs over x, then y, then z neighbours with z fastest, as in
    scipy's NI_ZoomShift, so every bit agrees.

    Args:
        image: `[x, y, z]`, any strides.
        out: `[z, y, x]`, written for y in first..last-1.
        low: lower source index per target index, for x, y, z.
        high: upper source index.
        w_low: weight of the lower one.
        w_high: weight of the upper one.
        first: first y of this call.
        last: one past its last.
    """
    nz, _, nx = out.shape
    xl, yl, zl = low
    xh, yh, zh = high
    wxl, wyl, wzl = w_low
    wxh, wyh, wzh = w_high
    for y in range(first, last):
        y0, y1, v0, v1 = yl[y], yh[y], wyl[y], wyh[y]
        for z in range(nz):
            z0, z1, u0, u1 = zl[z], zh[z], wzl[z], wzh[z]
            for x in range(nx):
                x0, x1, t0, t1 = xl[x], xh[x], wxl[x], wxh[x]
                s = np.float64(image[x0, y0, z0]) * t0 * v0 * u0
                s += np.float64(image[x0, y0, z1]) * t0 * v0 * u1
                s += np.float64(image[x0, y1, z0]) * t0 * v1 * u0
                s += np.float64(image[x0, y1, z1]) * t0 * v1 * u1
                s += np.float64(image[x1, y0, z0]) * t1 * v0 * u0
                s += np.float64(image[x1, y0, z1]) * t1 * v0 * u1
                s += np.float64(image[x1, y1, z0]) * t1 * v1 * u0
                s += np.float64(image[x1, y1, z1]) * t1 * v1 * u1
                out[z, y, x] = np.float32(np.int32(s))


def _gather(
    labels: NDArray[np.uint8],
    out: NDArray[np.uint8],
    xs: NDArray[np.int64],
    ys: NDArray[np.int64],
    zs: NDArray[np.int64],
    first: int,
    last: int,
) -> None:
    """`out[x, y, z] = labels[xs[x], ys[y], zs[z]]` for x in first..last-1, any strides on both sides."""
    _, ny, nz = out.shape
    for x in range(first, last):
        sx = xs[x]
        for y in range(ny):
            sy = ys[y]
            for z in range(nz):
                out[x, y, z] = labels[sx, sy, zs[z]]


def _compiled(function: Callable[..., Any], *signatures: Any) -> Callable[..., Any]:  # noqa: ANN401
    return cast("Callable[..., Any]", _njit(list(signatures), nogil=True, error_model="numpy")(function))


def _any(dtype: Any, ndim: int) -> Any:  # noqa: ANN401
    return _types.Array(dtype, ndim, "A")


def _read(dtype: Any, ndim: int) -> Any:  # noqa: ANN401
    # Volumes that come out of Ray's object store are read-only views of shared memory.
    return _types.Array(dtype, ndim, "A", readonly=True)


def _c(dtype: Any, ndim: int) -> Any:  # noqa: ANN401
    return _types.Array(dtype, ndim, "C")


_I3: Any = _types.UniTuple(_types.int64, 3)
_I2: Any = _types.UniTuple(_types.int64, 2)


@functools.cache
def accumulate() -> Callable[..., None]:
    """Compiled `_accumulate`."""
    return _compiled(
        _accumulate,
        _types.void(
            _c(_types.uint16, 4), _c(_types.float32, 4), _c(_types.float32, 3), _I3, _types.int64, _types.int64
        ),
    )


@functools.cache
def settle() -> Callable[..., bool]:
    """Compiled `_settle`."""
    return _compiled(
        _settle,
        _types.boolean(_c(_types.uint16, 3), _c(_types.uint8, 2), _I2, _types.int64, _types.int64),
    )


@functools.cache
def zoom_linear() -> Callable[..., None]:
    """Compiled `_zoom_linear` for the dtypes of `Volume`, and int32 crops of them."""
    index, weight = _types.UniTuple(_c(_types.int64, 1), 3), _types.UniTuple(_c(_types.float64, 1), 3)
    return _compiled(
        _zoom_linear,
        *(
            _types.void(
                _read(dtype, 3), _c(_types.float32, 3), index, index, weight, weight, _types.int64, _types.int64
            )
            for dtype in (_types.int16, _types.float32)
        ),
    )


@functools.cache
def gather() -> Callable[..., None]:
    """Compiled `_gather`."""
    index = _c(_types.int64, 1)
    return _compiled(
        _gather,
        _types.void(_any(_types.uint8, 3), _any(_types.uint8, 3), index, index, index, _types.int64, _types.int64),
    )


def compile_all() -> None:
    """Every kernel that this processor can run is compiled."""
    zoom_linear()
    gather()
    if has_half_conversion():
        accumulate()
        settle()


class Slabs:
    """A few threads over which an index range is split; kernels release the GIL."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="slabs") if threads > 1 else None

    def run(self, n: int, kernel: Callable[[int, int], Any]) -> list[Any]:
        """`kernel(first, last)` over consecutive parts of range(n); returns what they returned."""
        if self._pool is None or n < 2 * self.threads:
            return [kernel(0, n)]
        edges = [n * k // self.threads for k in range(self.threads + 1)]
        return list(self._pool.map(kernel, edges[:-1], edges[1:]))
