"""What the tasks of one study share: checks, the canonical view, images at a model's spacing, rough segmentations."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.errors import Broken, EmptyImage, NotAVolume
from heimdallr_ray.segmentation.deadline import Deadline
from heimdallr_ray.segmentation.engine import Segmentation, Timings
from heimdallr_ray.segmentation.totalseg import geometry, kernels
from heimdallr_ray.segmentation.totalseg.geometry import Box, Image, Spacing
from heimdallr_ray.volume import Volume

MIN_VOXELS = 4
"""Along each axis: nnU-Net's cubic interpolation has no support on fewer, and no structure is seen in them."""


@dataclass(frozen=True, eq=False)
class ModelImage:
    """An image as a model is given it.

    Attributes:
        zyx: `[z, y, x]` float32.
        affine: of the image as `[x, y, z]`, RAS millimetres.
        canonical: the image before resampling, in canonical axes.
        box: the part of the volume it shows, in native voxels; None for all of it.
        whole: every value is a whole number, as those of CT are unless an image is taken as it is.
    """

    zyx: NDArray[np.float32]
    affine: NDArray[np.float64]
    canonical: Image
    box: Box | None = None
    whole: bool = True


class Study:
    """One volume on its way through several tasks; each shared step is done once.

    Raises (on construction):
        EmptyImage: the volume holds one value only.
        NotAVolume: it holds NaN or infinity (`not_finite`), or is too thin along an axis (`too_small`).
    """

    def __init__(self, volume: Volume, slabs: kernels.Slabs) -> None:
        self.deadline = Deadline()
        began = time.perf_counter()
        array = volume.array
        if min(array.shape) < MIN_VOXELS:
            raise NotAVolume("too_small", f"fewer than {MIN_VOXELS} voxels along an axis")
        low, high = array.min(), array.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise NotAVolume("not_finite", "the image holds values that are not finite")
        if low == high:
            raise EmptyImage("all voxels have the same value")
        # an engine that keeps a study must not keep the caller's volume with it
        self._volume = weakref.ref(volume)
        self.source = volume.source
        self.lock = threading.RLock()
        self.native = Image(array, np.asarray(volume.affine_ras, np.float64))
        self.canonical = geometry.canonical(self.native)
        self._slabs = slabs
        self._images: dict[Spacing | None, ModelImage] = {}
        self.segmentations: dict[str, Segmentation] = {}
        self.found_ml: dict[str, float] = {}
        self._pending = Timings(load_s=time.perf_counter() - began, loads=1, canonical_views=1)

    @property
    def volume(self) -> Volume:
        """The volume, which its caller holds.

        Raises:
            Broken: nobody holds it any more.
        """
        volume = self._volume()
        if volume is None:
            raise Broken("the volume of this study is gone")
        return volume

    def take_timings(self) -> Timings:
        """Shared work since the last call; the task that needed it first pays."""
        pending, self._pending = self._pending, Timings()
        return pending

    def image(self, spacing_mm: Spacing | None) -> ModelImage:
        """The whole volume at a spacing (None: its own), made on first use and kept."""
        if spacing_mm not in self._images:
            self._images[spacing_mm] = self._at_spacing(self.canonical, spacing_mm)
        return self._images[spacing_mm]

    def cropped(self, spacing_mm: Spacing | None, mask: NDArray[np.bool_], margin_mm: float) -> ModelImage | None:
        """The part around `mask` (native axes), or None where the mask is empty.

        Upstream, given an empty mask and no output file, goes on with the whole volume; an engine that answers "no
        brain" with a bleed in the abdomen is of no use, so here nothing is predicted.
        """
        zooms = geometry.zooms_of(self.native.affine)
        margin = (np.array([margin_mm] * 3) / zooms).astype(int)
        box = geometry.box_around(mask, margin)
        if box is None:
            return None
        part = geometry.canonical(geometry.crop(self.native, box))
        self._pending += Timings(canonical_views=1)
        return replace(self._at_spacing(part, spacing_mm), box=box)

    def _at_spacing(self, image: Image, spacing_mm: Spacing | None) -> ModelImage:
        began = time.perf_counter()
        shape = geometry.shape3(image.array)
        zoom = None if spacing_mm is None else geometry.zoom_to_spacing(shape, image.affine, spacing_mm)
        if zoom is None:
            zyx = np.ascontiguousarray(image.array.transpose(2, 1, 0), dtype=np.float32)
            made = ModelImage(zyx, image.affine, image, whole=image.array.dtype.kind in "iu")
        else:
            zyx = geometry.resample_linear(image.array, zoom.shape, self._slabs)
            made = ModelImage(zyx, zoom.affine, image)
        self._pending += Timings(resample_s=time.perf_counter() - began, resamplings=0 if zoom is None else 1)
        return made

    def restore(self, labels: NDArray[np.uint8], image: ModelImage) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Labels of a model image on the grid of the volume, and the affine upstream would give them.

        Args:
            labels: `[x, y, z]` uint8 on the grid of `image`.
            image: what the model saw.

        Returns:
            `[i, j, k]` uint8, contiguous, and its affine.
        """
        shape = geometry.shape3(self.native.array)
        out = np.empty(shape, np.uint8) if image.box is None else np.zeros(shape, np.uint8)
        part = out if image.box is None else out[tuple(slice(low, high) for low, high in image.box)]
        target = geometry.canonical_view(part, self.native.affine)
        if labels.shape == target.shape:
            # upstream keeps what it read back from a file
            geometry.write_same(labels, target, self._slabs)
            affine = geometry.through_file(image.affine)
        else:
            geometry.write_nearest(labels, target, self._slabs)
            affine = image.canonical.affine
        if image.box is not None:
            return out, self.native.affine
        return out, geometry.native_affine(affine, geometry.shape3(target), self.native.affine)
