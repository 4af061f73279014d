"""A synthetic CT of a torso, neck and head with known truth: density, labels, tissues, bleed.

Every voxel's label is the structure painted there, so volumes and densities are known exactly. It teaches and tests
the demo networks; it is no model of a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from heimdallr_ray.segmentation.demo import anatomy
from heimdallr_ray.segmentation.demo.anatomy import Phase, Tissue, Triple
from heimdallr_ray.segmentation.demo.canvas import Canvas, grid
from heimdallr_ray.segmentation.demo.shapes import smooth_field, superellipsoid

_BLUR_SIGMA_MM = 0.8
_TEXTURE_HU = 2.5
_TEXTURE_KNOT_MM = 45.0
_SCALE = (0.95, 1.05)
_HU_JITTER = 3.0
_CENTRE_JITTER_MM = 4.0
_RADIUS_JITTER = 0.07


@dataclass(frozen=True)
class PhantomTruth:
    """What was painted.

    Attributes:
        seed: the generator's seed; the same seed is the same body at any spacing, z range and noise.
        phase: contrast phase.
        volumes_ml: structure name to millilitres inside the field of view, counted on the returned grid.
        hu: structure name to the density it was painted with, before blur and noise.
        vertebral_hu: density of the vertebral bodies (each level within 6 HU of it).
        subcutaneous_fat_mm: thickness of the fat under the skin.
        bleed_ml: volume of the bleed on the returned grid; 0.0 without one.
    """

    seed: int
    phase: Phase
    volumes_ml: Mapping[str, float]
    hu: Mapping[str, float]
    vertebral_hu: float
    subcutaneous_fat_mm: float
    bleed_ml: float


@dataclass(frozen=True)
class Phantom:
    """A synthetic CT with its truth; all arrays are `[i, j, k]` on one grid.

    Attributes:
        hu: int16, Hounsfield units.
        total: uint8, label values of TotalSegmentator's task `total`.
        tissue: uint8, 1 subcutaneous fat, 2 torso fat, 3 skeletal muscle.
        bleed: bool, blood inside the brain (such voxels also carry the brain's label in `total`).
        affine_ras: 4 x 4, voxel index to RAS mm.
        truth: what was painted.
    """

    hu: NDArray[np.int16]
    total: NDArray[np.uint8]
    tissue: NDArray[np.uint8]
    bleed: NDArray[np.bool_]
    affine_ras: NDArray[np.float64]
    truth: PhantomTruth


def _jittered(rng: np.random.Generator, organ: anatomy.Organ) -> tuple[Triple, Triple]:
    shift = rng.uniform(-_CENTRE_JITTER_MM, _CENTRE_JITTER_MM, 3)
    stretch = rng.uniform(1 - _RADIUS_JITTER, 1 + _RADIUS_JITTER, 3)
    cx, cy, cz = (float(c + s) for c, s in zip(organ.centre_mm, shift, strict=True))
    rx, ry, rz = (float(r * s) for r, s in zip(organ.radii_mm, stretch, strict=True))
    return (cx, cy, cz), (rx, ry, rz)


def _paint_wall(canvas: Canvas, rng: np.random.Generator, phase: Phase) -> float:
    """Skin fat, wall muscle and cavity of torso and neck; returns the fat's thickness in mm."""
    fat, muscle = float(rng.uniform(10, 22)), float(rng.uniform(14, 20))
    half_width = anatomy.BODY_HALF_WIDTH_MM + float(rng.uniform(-5, 5))
    half_depth = anatomy.BODY_HALF_DEPTH_MM + float(rng.uniform(-4, 4))
    neck = anatomy.NECK_CENTRE_MM, anatomy.NECK_HALF_LENGTH_MM
    layers = (
        (fat, anatomy.SUBCUTANEOUS_FAT_HU, Tissue.SUBCUTANEOUS_FAT),
        (0.0, anatomy.WALL_MUSCLE_HU[phase], Tissue.SKELETAL_MUSCLE),
        (-muscle, anatomy.TORSO_FAT_HU, Tissue.TORSO_FAT),
    )
    for grow, hu, tissue in layers:
        torso = (half_width + grow, half_depth + grow, anatomy.TORSO_HALF_LENGTH_MM)
        canvas.wall(anatomy.TORSO_CENTRE_MM, torso, 2.6, hu, tissue)
        if tissue is not Tissue.TORSO_FAT:
            canvas.wall(neck[0], (58 + grow / 3, 62 + grow / 3, neck[1]), 2.0, hu, tissue)
    # organs stay 4 mm off the wall, so that a film of fat parts liver from muscle of the same density
    inner = (half_width - muscle - 4, half_depth - muscle - 4, anatomy.TORSO_HALF_LENGTH_MM)
    found = superellipsoid(canvas.axes, anatomy.TORSO_CENTRE_MM, inner, 2.6, "cylinder")
    if found is not None:
        canvas.interior[found[0]] = found[1]
    return fat


def _split_lobes(canvas: Canvas, box_label: int, centre: Triple) -> None:
    """Divide a lung, painted as its upper lobe, along the oblique and (right) the horizontal fissure."""
    y, z = canvas.axes[1][None, :, None], canvas.axes[2][None, None, :]
    lung = canvas.total == box_label
    below = z < centre[2] + 20 - 0.4 * (y - centre[1])
    if box_label == anatomy.LUNG_UPPER_LEFT:
        canvas.total[lung & below] = anatomy.LUNG_LOWER_LEFT
        return
    canvas.total[lung & below] = anatomy.LUNG_LOWER_RIGHT
    canvas.total[lung & below & (z > centre[2] - 60) & (y > centre[1] + 20)] = anatomy.LUNG_MIDDLE_RIGHT


def _paint_organs(canvas: Canvas, rng: np.random.Generator, phase: Phase) -> dict[str, float]:
    painted_hu: dict[str, float] = {}
    for organ in anatomy.ORGANS:
        centre, radii = _jittered(rng, organ)
        hu = organ.hu[phase] + float(rng.uniform(-_HU_JITTER, _HU_JITTER))
        free = organ.label in anatomy.MUSCLE_LABELS | anatomy.BONE_LABELS or organ.name in ("trachea", "esophagus")
        label = organ.label
        if organ.label == 0:
            label = anatomy.LUNG_UPPER_RIGHT if organ.name == "lung_right" else anatomy.LUNG_UPPER_LEFT
        inside = None if free else canvas.interior
        canvas.organ(label, organ.shape, centre, radii, organ.exponent, hu, inside=inside)
        if organ.label == 0:
            _split_lobes(canvas, label, centre)
        painted_hu[organ.name] = hu
    return painted_hu


def _paint_spine(canvas: Canvas, rng: np.random.Generator) -> float:
    """Discs, bodies, posterior elements and cord; returns the density of the vertebral bodies."""
    bone_hu = float(rng.uniform(120, 220))
    x, y = float(rng.uniform(-3, 3)), float(rng.uniform(-3, 3)) - 58.0
    for label, z in anatomy.VERTEBRA_Z_MM.items():
        half_height, radius = anatomy.vertebra_size_mm(label)
        hu = bone_hu + float(rng.uniform(-6, 6))
        disc = (radius * 0.95, radius * 0.74, half_height * 1.35)
        free = canvas.total == 0
        canvas.organ(0, "cylinder", (x, y, z), disc, 2.4, anatomy.DISC_HU, inside=free)
        canvas.organ(label, "cylinder", (x, y, z), (radius, radius * 0.78, half_height), 2.4, hu)
        back = (x, y - radius - 10, z)
        canvas.organ(label, "ellipsoid", back, (8, 13, half_height * 0.85), 2.0, anatomy.posterior_element_hu(label))
    canvas.organ(anatomy.SPINAL_CORD, "cylinder", (x, y - 24, 330.0), (7, 6, 300), 2.0, 35.0)
    return bone_hu


def _paint_head(canvas: Canvas, rng: np.random.Generator, phase: Phase, bleed_ml: tuple[float, ...]) -> None:
    centre = anatomy.HEAD_CENTRE_MM
    stretch = rng.uniform(0.95, 1.05, 3)
    brain_hu = 34.0 + (0.0 if phase is Phase.NATIVE else 4.0) + float(rng.uniform(-2, 2))
    for label, radii, hu in (
        (0, anatomy.SCALP_RADII_MM, 45.0),
        (anatomy.SKULL, anatomy.SKULL_RADII_MM, 900.0),
        (anatomy.BRAIN, anatomy.BRAIN_RADII_MM, brain_hu),
    ):
        rx, ry, rz = (float(r * s) for r, s in zip(radii, stretch, strict=True))
        canvas.organ(label, "ellipsoid", centre, (rx, ry, rz), 2.1, hu)
    for side in (-1, 1):
        ventricle = (centre[0] + side * 12.0, centre[1] + 5.0, centre[2] + 12.0)
        found = superellipsoid(canvas.axes, ventricle, (7, 30, 12))
        if found is not None:
            canvas.hu[found[0]][found[1]] = 8.0
    brain = canvas.total == anatomy.BRAIN
    room = np.array(anatomy.BRAIN_RADII_MM) * stretch - 8.0
    for wanted_ml in bleed_ml:
        radii_mm = (wanted_ml * 1000.0 * 0.75 / np.pi) ** (1 / 3) * rng.uniform(0.85, 1.15, 3)
        radii_mm *= ((wanted_ml * 1000.0 * 0.75 / np.pi) / radii_mm.prod()) ** (1 / 3)
        direction = rng.standard_normal(3)
        direction *= rng.uniform(0.1, 0.85) / np.linalg.norm(direction)
        bx, by, bz = (float(v) for v in np.array(centre) + direction * np.maximum(room - radii_mm, 1.0))
        rx, ry, rz = (float(v) for v in radii_mm)
        found = superellipsoid(canvas.axes, (bx, by, bz), (rx, ry, rz))
        if found is not None:
            mask = found[1] & brain[found[0]]
            canvas.hu[found[0]][mask] = float(rng.uniform(64, 80))
            canvas.bleed[found[0]][mask] = True


def _finished_hu(
    canvas: Canvas, rng: np.random.Generator, spacing: Triple, extent_mm: Triple, noise_hu: float
) -> NDArray[np.int16]:
    """Blur of the scanner, slow inhomogeneity and noise."""
    filters = cast("Any", ndimage)
    hu: NDArray[np.float32] = filters.gaussian_filter(canvas.hu, [_BLUR_SIGMA_MM / s for s in spacing], truncate=3.0)
    if noise_hu > 0:
        ki, kj, kk = (max(2, round(e / _TEXTURE_KNOT_MM)) for e in extent_mm)
        hu += np.float32(_TEXTURE_HU) * smooth_field(rng, hu.shape, (ki, kj, kk))
        hu += np.float32(noise_hu) * rng.standard_normal(hu.shape, dtype=np.float32)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def _volumes_ml(canvas: Canvas, voxel_ml: float) -> dict[str, float]:
    counts = np.bincount(canvas.total.ravel(), minlength=256) * voxel_ml
    tissue = np.bincount(canvas.tissue.ravel(), minlength=4) * voxel_ml
    volumes = {o.name: float(counts[o.label]) for o in anatomy.ORGANS if o.label}
    left = counts[[anatomy.LUNG_UPPER_LEFT, anatomy.LUNG_LOWER_LEFT]].sum()
    right = counts[[anatomy.LUNG_UPPER_RIGHT, anatomy.LUNG_MIDDLE_RIGHT, anatomy.LUNG_LOWER_RIGHT]].sum()
    volumes |= {"lung_left": float(left), "lung_right": float(right), "brain": float(counts[anatomy.BRAIN])}
    volumes |= {kind.name.lower(): float(tissue[kind]) for kind in Tissue if kind is not Tissue.NONE}
    return volumes


def make(
    seed: int,
    spacing_mm: Triple,
    z_range_mm: tuple[float, float],
    *,
    phase: Phase | None = None,
    bleed_ml: tuple[float, ...] = (),
    noise_hu: float = 8.0,
    fov_mm: tuple[float, float] = (400.0, 300.0),
) -> Phantom:
    """One synthetic CT.

    Args:
        seed: fixes the body (sizes, positions, densities) and the noise.
        spacing_mm: voxel size along x, y, z.
        z_range_mm: lower and upper end; the pelvis begins at -110, lungs end at 540, the head at 795.
        phase: contrast phase; drawn from the seed when None.
        bleed_ml: sizes of the bleeds in the brain; needs a z range that holds the head.
        noise_hu: standard deviation of the noise; 0 also leaves the slow inhomogeneity out.
        fov_mm: field of view along x and y, centred on the body.

    Raises:
        ValueError: the grid would be empty, or a bleed is asked for outside the head.
    """
    if bleed_ml and z_range_mm[1] <= anatomy.HEAD_CENTRE_MM[2]:
        raise ValueError("a bleed needs a z range that holds the head")
    rng = np.random.default_rng(seed)
    drawn = Phase(int(rng.integers(len(Phase))))
    phase = drawn if phase is None else phase
    scale = rng.uniform(*_SCALE, 3)
    (i, j, k), affine = grid(spacing_mm, z_range_mm, fov_mm)
    canvas = Canvas((i / scale[0], j / scale[1], k / scale[2]))
    fat_mm = _paint_wall(canvas, rng, phase)
    painted_hu = _paint_organs(canvas, rng, phase)
    vertebral_hu = _paint_spine(canvas, rng)
    head_rng = np.random.default_rng((seed, 1))
    if z_range_mm[1] > anatomy.HEAD_STARTS_AT_MM:
        _paint_head(canvas, head_rng, phase, bleed_ml)
    extent = (fov_mm[0], fov_mm[1], z_range_mm[1] - z_range_mm[0])
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    truth = PhantomTruth(
        seed=seed,
        phase=phase,
        volumes_ml=_volumes_ml(canvas, voxel_ml),
        hu=painted_hu,
        vertebral_hu=vertebral_hu,
        subcutaneous_fat_mm=fat_mm,
        bleed_ml=float(canvas.bleed.sum() * voxel_ml),
    )
    hu = _finished_hu(canvas, np.random.default_rng((seed, 2)), spacing_mm, extent, noise_hu)
    return Phantom(hu, canvas.total, canvas.tissue, canvas.bleed, affine, truth)


def chest_abdomen(seed: int, *, phase: Phase | None = None) -> Phantom:
    """The chest and abdomen CT of the demo: 320 x 240 pixels of 1.25 mm, 260 slices of 2 mm, L5 to lung apices."""
    return make(seed, (1.25, 1.25, 2.0), (20.0, 540.0), phase=phase, noise_hu=10.0)


def head_bleed(seed: int, *, with_bleed: bool = True) -> Phantom:
    """The native head CT of the demo: 0.8 mm pixels, 76 slices of 2.5 mm, with one bleed of 20 to 40 ml unless told."""
    wanted = (float(np.random.default_rng((seed, 3)).uniform(22, 38)),) if with_bleed else ()
    return make(
        seed, (0.8, 0.8, 2.5), (608.0, 798.0), phase=Phase.NATIVE, bleed_ml=wanted, noise_hu=4.0, fov_mm=(224, 256)
    )
