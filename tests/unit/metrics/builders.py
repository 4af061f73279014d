"""Digital phantoms with known answers: boxes and spheres in patient millimetres on any grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.result import Measurement
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, VolumeSource

TOTAL = {
    1: "spleen",
    2: "kidney_right",
    3: "kidney_left",
    5: "liver",
    27: "vertebrae_L5",
    28: "vertebrae_L4",
    29: "vertebrae_L3",
    30: "vertebrae_L2",
    31: "vertebrae_L1",
    51: "heart",
    90: "brain",
}
TISSUE = {1: "subcutaneous_fat", 2: "torso_fat", 3: "skeletal_muscle"}
BLEED = {1: "intracerebral_hemorrhage"}
LABELS = {"total": TOTAL, "tissue_types": TISSUE, "cerebral_bleed": BLEED}
Point = tuple[float, float, float]


def model(task: str, *, synthetic: bool = False) -> ModelRef:
    return ModelRef(task, f"totalsegmentator/{task}", f"sha-{task}", synthetic)


@dataclass(frozen=True)
class Scene:
    """An image and its label maps; every method gives a new one."""

    hu: NDArray[np.int16]
    affine: NDArray[np.float64]
    maps: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    modality: str = "CT"
    flags: tuple[str, ...] = ()
    synthetic: bool = False

    @classmethod
    def empty(cls, size_mm: Point, spacing_mm: Point = (2.0, 2.0, 2.0), hu: int = -1000) -> Scene:
        shape = tuple(round(size / step) for size, step in zip(size_mm, spacing_mm, strict=True))
        return cls(np.full(shape, hu, np.int16), np.diag([*spacing_mm, 1.0]))

    def mm(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """RAS x, y, z of the voxel centres, each along its own axis; for scenes that were not reoriented."""
        i, j, k = np.ogrid[tuple(slice(n) for n in self.hu.shape)]
        x, y, z = (at * self.affine[axis, axis] + self.affine[axis, 3] for axis, at in enumerate((i, j, k)))
        return x, y, z

    def paint(self, task: str, name: str, mask: NDArray[np.bool_], hu: int | None = None) -> Scene:
        value = next(value for value, label in LABELS[task].items() if label == name)
        labels = self.maps.get(task, np.zeros(self.hu.shape, np.uint8)).copy()
        labels[mask] = value
        image = self.hu.copy()
        if hu is not None:
            image[mask] = hu
        return replace(self, hu=image, maps={**self.maps, task: labels})

    def box(self, task: str, name: str, low: Point, high: Point, hu: int | None = None) -> Scene:
        x, y, z = ((at >= a) & (at < b) for at, a, b in zip(self.mm(), low, high, strict=True))
        return self.paint(task, name, x & y & z, hu)

    def sphere(self, task: str, name: str, centre: Point, radius_mm: float, hu: int | None = None) -> Scene:
        x, y, z = (at - c for at, c in zip(self.mm(), centre, strict=True))
        return self.paint(task, name, x**2 + y**2 + z**2 <= radius_mm**2, hu)

    def with_task(self, task: str) -> Scene:
        """`task` was run; its label map is empty unless painted."""
        return replace(self, maps={task: np.zeros(self.hu.shape, np.uint8), **self.maps})

    def reoriented(self, order: tuple[int, ...], flips: tuple[bool, ...]) -> Scene:
        """The same anatomy with permuted and reversed array axes (views, any memory order)."""
        to_old = np.zeros((4, 4))
        to_old[3, 3] = 1.0
        for new, old in enumerate(order):
            to_old[old, new] = -1.0 if flips[new] else 1.0
            to_old[old, 3] = self.hu.shape[old] - 1 if flips[new] else 0.0
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)

        def turned(array: NDArray[Any]) -> NDArray[Any]:
            return array.transpose(order)[steps]

        return replace(
            self,
            hu=turned(self.hu),
            affine=self.affine @ to_old,
            maps={task: turned(labels) for task, labels in self.maps.items()},
        )

    def cropped(self, axis: int, *, low: int = 0, high: int = 0) -> Scene:
        """Without `low` planes at the low and `high` planes at the high end of an axis."""
        cut = [slice(None)] * 3
        cut[axis] = slice(low, self.hu.shape[axis] - high)
        shift = np.eye(4)
        shift[axis, 3] = low
        at = tuple(cut)
        return replace(
            self,
            hu=self.hu[at],
            affine=self.affine @ shift,
            maps={task: labels[at] for task, labels in self.maps.items()},
        )

    @property
    def volume(self) -> Volume:
        source = VolumeSource(self.modality, "1.2.3", "1.2.3.4", manifest_sha256="m", synthetic=self.synthetic)
        return Volume(self.hu, self.affine, source, self.flags)

    @property
    def label_maps(self) -> dict[str, LabelMap]:
        return {
            task: LabelMap(labels, self.affine, LABELS[task], model(task), "m") for task, labels in self.maps.items()
        }

    def context(self, **not_run: str) -> MetricContext:
        return MetricContext(self.volume, self.label_maps, not_run)


@cache
def torso(spacing_mm: Point = (2.0, 2.0, 2.5)) -> Scene:
    """Organs of known size, five lumbar vertebrae with processes that hang down, a muscle wall with fat in it."""
    scene = Scene.empty((240.0, 200.0, 260.0), spacing_mm)
    x, y, z = scene.mm()
    radius = np.hypot((x - 120.0) / 110.0, (y - 100.0) / 90.0) + 0.0 * z
    scene = scene.paint("tissue_types", "subcutaneous_fat", (radius < 1.0) & (radius >= 0.9), -105)
    scene = scene.paint("tissue_types", "skeletal_muscle", (radius < 0.9) & (radius >= 0.8), 50)
    scene = scene.paint("tissue_types", "torso_fat", radius < 0.8, -95)
    # Fat inside the muscle label: every voxel of the wall on the patient's left back is below the window.
    streak = (radius < 0.9) & (radius >= 0.8) & (x < 60.0) & (y < 60.0)
    scene = scene.paint("tissue_types", "skeletal_muscle", streak, -80)
    scene = scene.box("total", "liver", (142.0, 70.0, 150.0), (222.0, 150.0, 240.0), 60)
    scene = scene.box("total", "spleen", (30.0, 60.0, 170.0), (70.0, 110.0, 240.0), 50)
    scene = scene.sphere("total", "kidney_right", (170.0, 50.0, 120.0), 24.0, 30)
    scene = scene.sphere("total", "kidney_left", (70.0, 50.0, 130.0), 24.0, 35)
    for number, height in ((1, 190.0), (2, 155.0), (3, 120.0), (4, 85.0), (5, 50.0)):
        name = f"vertebrae_L{number}"
        # 40 x 30 x 28 mm body, and a process behind it whose tip hangs 30 mm lower.
        scene = scene.box("total", name, (100.0, 50.0, height - 14.0), (140.0, 80.0, height + 14.0), 200)
        process = (abs(x - 120.0) < 4.0) & (y >= 20.0) & (y < 50.0) & (abs(z - (height - 30.0 + (y - 20.0))) < 8.0)
        scene = scene.paint("total", name, process, 250)
    return scene.with_task("cerebral_bleed")


@cache
def head(bleed_radii_mm: tuple[float, ...] = (), spacing_mm: Point = (1.0, 1.0, 2.5)) -> Scene:
    """A brain with spheres of blood, the first in its right half, the second in its left."""
    scene = Scene.empty((160.0, 190.0, 150.0), spacing_mm)
    x, y, z = scene.mm()
    inside = ((x - 80.0) / 65.0) ** 2 + ((y - 95.0) / 80.0) ** 2 + ((z - 75.0) / 60.0) ** 2 <= 1.0
    scene = scene.paint("total", "brain", inside, 34).with_task("cerebral_bleed")
    for number, radius_mm in enumerate(bleed_radii_mm):
        side = 105.0 if number % 2 == 0 else 55.0
        scene = scene.sphere(
            "cerebral_bleed", "intracerebral_hemorrhage", (side, 95.0 + 10 * number, 75.0), radius_mm, 68
        )
    return scene


def orientations() -> Iterator[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """All 48 ways to lay three axes into an array."""
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            yield order, flips


def by_id(measurements: tuple[Measurement, ...]) -> dict[str, Measurement]:
    return {one.id: one for one in measurements}
