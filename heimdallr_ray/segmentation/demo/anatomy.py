"""The demo body as tables: where each structure lies, how large it is, and how dense in which contrast phase.

Coordinates are RAS millimetres of a body of unit scale whose origin is the pelvis inlet. Label values are those of
TotalSegmentator's task `total`. Densities are plausible group means, not a claim about any person: native soft tissue
30 to 60 HU, lung -830 HU, portal venous liver about 110 HU (ACR phantom and textbook values).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Shape = Literal["ellipsoid", "cylinder"]
Triple = tuple[float, float, float]


class Phase(IntEnum):
    """Contrast phase; indexes the density triples below."""

    NATIVE = 0
    PORTAL = 1
    ARTERIAL = 2


class Tissue(IntEnum):
    """Label values of TotalSegmentator's task `tissue_types`."""

    NONE = 0
    SUBCUTANEOUS_FAT = 1
    TORSO_FAT = 2
    SKELETAL_MUSCLE = 3


@dataclass(frozen=True)
class Organ:
    """One painted structure.

    Attributes:
        name: TotalSegmentator's name, or `lung_left` and `lung_right`, which are split into lobes.
        label: value in task `total`; 0 for the two lungs.
        shape: a superellipsoid, or a superelliptic cylinder along z.
        centre_mm: x, y, z.
        radii_mm: half axes; along z half the length of a cylinder.
        exponent: 2 is an ellipsoid, larger is boxier.
        hu: density in the phases NATIVE, PORTAL, ARTERIAL.
    """

    name: str
    label: int
    shape: Shape
    centre_mm: Triple
    radii_mm: Triple
    exponent: float
    hu: Triple


BODY_HALF_WIDTH_MM = 150.0
BODY_HALF_DEPTH_MM = 105.0
TORSO_CENTRE_MM: Triple = (0.0, -5.0, 230.0)
TORSO_HALF_LENGTH_MM = 340.0
NECK_CENTRE_MM: Triple = (0.0, -10.0, 590.0)
NECK_HALF_LENGTH_MM = 70.0
HEAD_CENTRE_MM: Triple = (0.0, 0.0, 702.0)
SCALP_RADII_MM: Triple = (80.0, 96.0, 82.0)
SKULL_RADII_MM: Triple = (73.0, 89.0, 75.0)
BRAIN_RADII_MM: Triple = (66.0, 82.0, 68.0)
HEAD_STARTS_AT_MM = 610.0

AIR_HU = -1000.0
SUBCUTANEOUS_FAT_HU = -108.0
TORSO_FAT_HU = -92.0
WALL_MUSCLE_HU: Triple = (56.0, 64.0, 60.0)
DISC_HU = 82.0

BRAIN, SKULL, SPINAL_CORD = 90, 91, 79
LUNG_UPPER_LEFT, LUNG_LOWER_LEFT, LUNG_UPPER_RIGHT, LUNG_MIDDLE_RIGHT, LUNG_LOWER_RIGHT = 10, 11, 12, 13, 14
MUSCLE_LABELS = frozenset({86, 87, 88, 89})
BONE_LABELS = frozenset({25, 75, 76, 77, 78, 116})

ORGANS: tuple[Organ, ...] = (
    Organ("lung_right", 0, "ellipsoid", (72, 0, 385), (58, 84, 122), 2.2, (-830, -830, -830)),
    Organ("lung_left", 0, "ellipsoid", (-72, 0, 385), (58, 84, 122), 2.2, (-830, -830, -830)),
    Organ("trachea", 16, "cylinder", (0, -8, 520), (10, 10, 90), 2, (-960, -960, -960)),
    Organ("esophagus", 15, "cylinder", (-2, -31, 420), (8, 8, 160), 2, (30, 52, 46)),
    Organ("heart", 51, "ellipsoid", (-16, 36, 340), (58, 47, 52), 2, (44, 150, 250)),
    Organ("liver", 5, "ellipsoid", (66, 16, 238), (72, 68, 62), 2.3, (60, 114, 76)),
    Organ("stomach", 6, "ellipsoid", (-44, 42, 222), (40, 34, 44), 2, (14, 18, 16)),
    Organ("spleen", 1, "ellipsoid", (-98, -24, 242), (28, 40, 46), 2, (48, 126, 138)),
    Organ("small_bowel", 18, "ellipsoid", (0, 44, 80), (70, 28, 52), 2.2, (24, 40, 32)),
    Organ("colon", 20, "ellipsoid", (104, 12, 78), (19, 20, 70), 2, (-30, -20, -25)),
    Organ("colon", 20, "ellipsoid", (-104, 12, 78), (19, 20, 70), 2, (-30, -20, -25)),
    Organ("pancreas", 7, "ellipsoid", (-8, 8, 170), (56, 13, 15), 2, (38, 94, 108)),
    Organ("duodenum", 19, "ellipsoid", (42, 10, 148), (15, 14, 28), 2, (22, 46, 38)),
    Organ("gallbladder", 4, "ellipsoid", (56, 60, 178), (16, 16, 25), 2, (4, 6, 5)),
    Organ("kidney_right", 2, "ellipsoid", (66, -42, 136), (28, 27, 52), 2, (32, 178, 158)),
    Organ("kidney_left", 3, "ellipsoid", (-66, -42, 150), (28, 27, 52), 2, (32, 178, 158)),
    Organ("adrenal_gland_right", 8, "ellipsoid", (46, -36, 202), (11, 7, 11), 2, (18, 60, 54)),
    Organ("adrenal_gland_left", 9, "ellipsoid", (-45, -34, 214), (11, 7, 11), 2, (18, 60, 54)),
    Organ("inferior_vena_cava", 63, "cylinder", (20, -22, 160), (12, 11, 130), 2, (40, 136, 64)),
    Organ("aorta", 52, "cylinder", (-12, -28, 250), (13, 13, 200), 2, (42, 150, 320)),
    Organ("urinary_bladder", 21, "ellipsoid", (0, 32, -50), (40, 32, 34), 2, (5, 5, 5)),
    Organ("iliopsoas_right", 89, "cylinder", (42, -44, 55), (17, 16, 95), 2, (58, 68, 63)),
    Organ("iliopsoas_left", 88, "cylinder", (-42, -44, 55), (17, 16, 95), 2, (58, 68, 63)),
    Organ("autochthon_right", 87, "cylinder", (31, -97, 250), (26, 17, 270), 2.5, (55, 65, 60)),
    Organ("autochthon_left", 86, "cylinder", (-31, -97, 250), (26, 17, 270), 2.5, (55, 65, 60)),
    Organ("hip_right", 78, "ellipsoid", (86, -25, -35), (34, 42, 62), 2.5, (320, 330, 325)),
    Organ("hip_left", 77, "ellipsoid", (-86, -25, -35), (34, 42, 62), 2.5, (320, 330, 325)),
    Organ("femur_right", 76, "ellipsoid", (116, -5, -80), (24, 24, 34), 2, (430, 440, 435)),
    Organ("femur_left", 75, "ellipsoid", (-116, -5, -80), (24, 24, 34), 2, (430, 440, 435)),
    Organ("sacrum", 25, "ellipsoid", (0, -68, -12), (44, 24, 32), 2.5, (230, 240, 235)),
    Organ("sternum", 116, "ellipsoid", (0, 88, 385), (16, 8, 80), 3, (250, 260, 255)),
)

_LUMBAR_Z_MM = (45, 80, 115, 150, 184)
_THORACIC_Z_MM = (216, 246, 275, 303, 330, 356, 381, 405, 428, 450, 471, 491)
_CERVICAL_Z_MM = (512, 530, 548, 566, 584, 602, 618)
VERTEBRA_Z_MM: dict[int, float] = dict(enumerate((*_LUMBAR_Z_MM, *_THORACIC_Z_MM, *_CERVICAL_Z_MM), start=27))
"""Label (27 is L5, 31 is L1, 32 is T12, 44 is C7, 50 is C1) to height of the vertebral body's centre."""


def vertebra_size_mm(label: int) -> tuple[float, float]:
    """Half height and half width of a vertebral body: lumbar, thoracic, cervical."""
    if label < 32:
        return 14.0, 22.0
    return (11.5, 17.0) if label < 44 else (7.4, 12.0)


def posterior_element_hu(label: int) -> float:
    """Density of the posterior element.

    It rises by 32 HU per level upwards. This writes the level into the picture, so that a network of one million
    weights can name it without counting; the body's density stays free for bone measurements.
    """
    return 230.0 + 32.0 * (label - 27)
