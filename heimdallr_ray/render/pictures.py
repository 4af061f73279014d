"""Key images and overlays as PNG: what a number was read from, and where.

Slices come from the measurements' evidence (largest area, level L3), so picture and number cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heimdallr_ray.errors import GeometryMismatch
from heimdallr_ray.metrics.result import Measurement
from heimdallr_ray.render.burn_in import MIN_SIDE, Colour, coloured, png
from heimdallr_ray.render.slices import (
    ABDOMEN,
    BRAIN,
    OVERVIEW,
    Plane,
    Window,
    auto_window,
    axis_of,
    display_of,
    picture_size,
    windowed,
)
from heimdallr_ray.volume import LabelMap, Volume, require_same_grid


@dataclass(frozen=True)
class Picture:
    """One PNG.

    Attributes:
        name: file name.
        kind: `key_image` (grey) or `overlay` (with outlines).
        png: the file.
        meta: JSON: plane, slice, window, structures, what it belongs to.
    """

    name: str
    kind: str
    png: bytes
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Subject:
    """What one pair of pictures shows.

    Attributes:
        name: stem of the file names.
        title: burned into the picture.
        measurement_ids: the first of these that carries slice evidence decides the slice.
        task: label map to draw.
        colours: structures and their colours.
        window: grey values.
    """

    name: str
    title: str
    measurement_ids: tuple[str, ...]
    task: str
    colours: Mapping[str, Colour]
    window: Window


ORGAN_COLOURS: dict[str, Colour] = {
    "liver": (214, 122, 72),
    "spleen": (156, 104, 222),
    "kidney_right": (84, 190, 120),
    "kidney_left": (72, 170, 210),
}
OVERVIEW_COLOURS: dict[str, Colour] = {
    **ORGAN_COLOURS,
    "vertebrae_L3": (240, 200, 80),
    "brain": (120, 150, 230),
    "heart": (220, 84, 96),
    **dict.fromkeys(
        (
            "lung_upper_lobe_left",
            "lung_lower_lobe_left",
            "lung_upper_lobe_right",
            "lung_middle_lobe_right",
            "lung_lower_lobe_right",
        ),
        (110, 160, 190),
    ),
    "urinary_bladder": (236, 212, 120),
    "aorta": (224, 64, 64),
}
SUBJECTS: tuple[Subject, ...] = (
    Subject(
        "hemorrhage",
        "intracranial hemorrhage",
        ("intracranial_hemorrhage_volume",),
        "cerebral_bleed",
        {"intracerebral_hemorrhage": (255, 72, 72)},
        BRAIN,
    ),
    *(
        Subject(
            name, name.replace("_", " "), (f"{name}_volume", f"{name}_attenuation"), "total", {name: colour}, ABDOMEN
        )
        for name, colour in ORGAN_COLOURS.items()
    ),
    Subject(
        "l3_muscle",
        "L3 skeletal muscle",
        ("l3_muscle_area", "l3_muscle_attenuation"),
        "tissue_types",
        {"skeletal_muscle": (230, 90, 110)},
        ABDOMEN,
    ),
)


def _caption(measurement: Measurement, subject: str) -> str:
    unit = {"[hnsf'U]": "HU", "1": ""}.get(measurement.unit, measurement.unit)
    quantity = measurement.id.removeprefix(f"{subject}_").replace("_", " ")
    if measurement.value is None:
        return f"{quantity}: none, {measurement.status.value} ({', '.join(measurement.reasons)})"
    return f"{quantity}: {measurement.value:.1f} {unit}".rstrip()


def _resized(pixels: NDArray[Any], size: tuple[int, int], how: Image.Resampling) -> NDArray[Any]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, how))


def _pair(
    stem: str,
    volume: Volume,
    label_map: LabelMap,
    colours: Mapping[str, Colour],
    window: Window,
    axis: int,
    index: int,
    lines: Sequence[str],
    meta: Mapping[str, Any],
    *,
    synthetic: bool,
) -> tuple[Picture, Picture]:
    display = display_of(volume.array.shape, volume.affine_ras, axis)
    image = display.of(volume.array, index)
    if volume.source.modality != "CT":
        window = auto_window(image)
    size = picture_size(image.shape[0], image.shape[1], display)
    grey = _resized(windowed(image, window), size, Image.Resampling.BILINEAR)
    by_value = {value: colours[name] for value, name in label_map.labels.items() if name in colours}
    labels = _resized(display.of(label_map.array, index).astype(np.int32), size, Image.Resampling.NEAREST)
    shown = sorted(label_map.labels[int(value)] for value in np.unique(labels) if int(value) in by_value)
    text = [*lines, f"{display.plane.value} {display.number(index)}/{display.n_slices}"]
    common = {
        **meta,
        "plane": display.plane.value,
        "slice_axis": axis,
        "slice_index": index,
        "slice_number": display.number(index),
        "n_slices": display.n_slices,
        "window_centre": window.centre,
        "window_width": window.width,
        "width": max(size[0], MIN_SIDE),
        "height": max(size[1], MIN_SIDE),
        "synthetic": synthetic,
    }
    legend = {name: "#{:02x}{:02x}{:02x}".format(*colours[name]) for name in shown}
    return (
        Picture(f"{stem}_key_image.png", "key_image", png(grey, display, text, synthetic=synthetic), common),
        Picture(
            f"{stem}_overlay.png",
            "overlay",
            png(coloured(grey, labels, by_value), display, text, synthetic=synthetic),
            {**common, "structures": legend},
        ),
    )


def _usable(volume: Volume, label_maps: Mapping[str, LabelMap]) -> Mapping[str, LabelMap]:
    usable: dict[str, LabelMap] = {}
    for task, label_map in label_maps.items():
        try:
            require_same_grid(volume, label_map)
        except GeometryMismatch:
            # Its measurements say so; a picture with labels of another grid would be a lie.
            continue
        usable[task] = label_map
    return usable


def _overview_slice(label_map: LabelMap | None, volume: Volume, axis: int) -> int:
    """The coronal slice with most voxels of the named structures; the middle one where there are none."""
    if label_map is None:
        return volume.array.shape[axis] // 2
    wanted = [value for value, name in label_map.labels.items() if name in OVERVIEW_COLOURS]
    lut = np.zeros(np.iinfo(label_map.array.dtype).max + 1, dtype=bool)
    lut[wanted] = True
    counts = lut[label_map.array].sum(axis=tuple(other for other in range(3) if other != axis))
    best = np.flatnonzero(counts == counts.max())
    ascending = display_of(volume.array.shape, volume.affine_ras, axis).ascending
    return int(best[(len(best) - ascending) // 2])


def _located(measurements: Sequence[Measurement], ids: tuple[str, ...], volume: Volume) -> tuple[int, int] | None:
    for measurement in sorted((m for m in measurements if m.id in ids), key=lambda m: ids.index(m.id)):
        axis, index = measurement.evidence.get("slice_axis"), measurement.evidence.get("slice_index")
        if isinstance(axis, int) and isinstance(index, int) and 0 <= axis < 3 and 0 <= index < volume.array.shape[axis]:
            return axis, index
    return None


def key_images(
    volume: Volume,
    label_maps: Mapping[str, LabelMap],
    measurements: Iterable[Measurement],
    *,
    synthetic: bool,
) -> tuple[Picture, ...]:
    """A coronal overview, then an axial key image and overlay for each subject whose measurement names a slice.

    Args:
        volume: the image, `[i, j, k]` in any orientation.
        label_maps: by task; those on another grid than the image are not drawn.
        measurements: their evidence `slice_axis` and `slice_index` decide what is shown.
        synthetic: burn in DEMO WEIGHTS - SYNTHETIC; also done where the volume or any label map says so.
    """
    usable = _usable(volume, label_maps)
    all_measurements = tuple(measurements)
    synthetic = synthetic or volume.source.synthetic or any(m.model.synthetic for m in label_maps.values())
    coronal = axis_of(volume.affine_ras, Plane.CORONAL)
    total = usable.get("total")
    blank = total or next(iter(usable.values()), None)
    pictures: list[Picture] = []
    if blank is not None:
        pictures.extend(
            _pair(
                "overview",
                volume,
                blank,
                OVERVIEW_COLOURS if total is not None else {},
                OVERVIEW,
                coronal,
                _overview_slice(total, volume, coronal),
                ("overview",),
                {"subject": "overview"},
                synthetic=synthetic,
            )
        )
    for subject in SUBJECTS:
        label_map = usable.get(subject.task)
        located = _located(all_measurements, subject.measurement_ids, volume)
        if label_map is None or located is None:
            continue
        mine = [m for m in all_measurements if m.id in subject.measurement_ids]
        pictures.extend(
            _pair(
                subject.name,
                volume,
                label_map,
                subject.colours,
                subject.window,
                *located,
                (subject.title, *(_caption(m, subject.name) for m in mine)),
                {"subject": subject.name, "measurements": [m.id for m in mine]},
                synthetic=synthetic,
            )
        )
    return tuple(pictures)
