"""Writes the tables of docs/measurements.md from the package; a test makes them again and compares.

The words around them are written by hand: what stands between `<!-- NAME: ... -->` and `<!-- /NAME -->` is replaced.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from heimdallr_ray.dicom import geometry
from heimdallr_ray.dicom.kernels import Sharpness, sharpness
from heimdallr_ray.dicom.rules import default_rules
from heimdallr_ray.metrics import (
    gates,
    intracranial_hemorrhage_volume,
    kidney_volume,
    l3_muscle,
    l3_muscle_area,
    liver_volume,
    organ,
    spleen_volume,
)
from heimdallr_ray.metrics.catalogue import CATALOGUE
from heimdallr_ray.reasons import REASONS, Place
from heimdallr_ray.segmentation import planner

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "measurements.md"
UNITS = {"[hnsf'U]": "HU", "cm2": "cm²", "mL": "mL", "1": "count"}
PLACES = {
    Place.STUDY: "Why a study has no result",
    Place.SERIES: "Why a series was not measured",
    Place.IMAGE: "What is unusual about the measured images",
    Place.TASK: "Why a segmentation was not run",
    Place.STATUS: "Status of a measurement",
    Place.MEASUREMENT: "Reasons and notes of a measurement",
}
SHARP_EXAMPLES = ("B70f", "LUNG", "BONE", "FC52", "YA")


def measured() -> str:
    """The quantities in the order in which they are shown."""
    rows = [
        (f"`{quantity.id}`", UNITS[quantity.unit], " and ".join(f"`{task}`" for task in quantity.tasks))
        for metric in CATALOGUE
        for quantity in metric.quantities
    ]
    return _table(("measurement", "unit", "segmentations it needs"), rows)


def organs() -> str:
    """The bounds of the organs."""
    kidney, liver, spleen = kidney_volume.ORGANS[0], liver_volume.ORGAN, spleen_volume.ORGAN
    rows = [
        (name, f"{one.min_ml:g} mL", f"{one.max_ml:g} mL", f"{one.min_roi_ml:g} mL")
        for name, one in (("liver", liver), ("spleen", spleen), ("each kidney", kidney))
    ]
    header = ("organ", "smaller is not the organ", "larger is implausible", "least sample for attenuation")
    return _table(header, rows)


def limits() -> str:
    """Every number that decides whether something is measured."""
    rules = default_rules().file
    ct, mr = rules.profiles["ct_volume"], rules.profiles["mr_volume"]
    sharp = [name for name in SHARP_EXAMPLES if sharpness(name, rules.kernels) is Sharpness.SHARP]
    low, high = organ.PLAUSIBLE_HU
    rows = [
        ("fewest slices of a series", f"{ct.min_slices}", "too_few_slices"),
        ("thickest slices of a series", f"CT {ct.max_thickness_mm:g} mm, MR {mr.max_thickness_mm:g} mm", "too_thick"),
        ("kernels that are refused on CT, for example", ", ".join(sharp), "sharp_kernel"),
        (
            "slices off the regular grid",
            f"the larger of {geometry.POSITION_TOLERANCE_MM:g} mm and "
            f"{geometry.POSITION_TOLERANCE_SHARE:.0%} of the spacing",
            "variable_spacing",
        ),
        (
            "missing slices that a series may have",
            f"{geometry.MAX_MISSING_SLICES}, and {geometry.MAX_MISSING_SHARE:.0%} of all",
            "missing_slices",
        ),
        ("slices beside their line", f"{geometry.COLLINEAR_TOLERANCE_MM:g} mm", "not_collinear"),
        ("tilt of the stack", f"{geometry.MAX_TILT_DEG:g}°", "bad_geometry"),
        ("brain that a bleed search needs", f"{planner.BRAIN_ML:g} mL", "anatomy_absent"),
        ("lumbar spine that body composition needs", f"{planner.LUMBAR_ML:g} mL", "anatomy_absent"),
        ("largest spacing for a volume", f"{gates.MAX_SPACING_MM:g} mm", "spacing_too_coarse"),
        ("largest piece of an organ", f"at least {gates.MIN_MAIN_SHARE:.0%} of it", "fragmented"),
        ("rim left out for the attenuation", f"{organ.EROSION_MM:g} mm", "insufficient_roi"),
        ("plausible attenuation of an organ", f"{low:g} to {high:g} HU", "implausible"),
        ("metal in a sample", f"more than {organ.METAL_SHARE:.1%} above {organ.METAL_HU} HU", "metal"),
        (
            "muscle window at L3",
            f"{l3_muscle.MUSCLE_HU[0]} to {l3_muscle.MUSCLE_HU[1]} HU",
            "insufficient_roi",
        ),
        ("least muscle at L3", f"{l3_muscle.MIN_MUSCLE_CM2:g} cm²", "insufficient_roi"),
        (
            "plausible muscle area at L3",
            f"{l3_muscle_area.PLAUSIBLE_CM2[0]:g} to {l3_muscle_area.PLAUSIBLE_CM2[1]:g} cm²",
            "implausible",
        ),
        ("obliquity of the slice at L3", f"{l3_muscle.MAX_OBLIQUITY_DEG:g}°", "oblique_slices"),
        (
            "distances from L3 to L2 and to L4",
            f"the smaller at least {l3_muscle.MIN_SPACING_RATIO:.0%} of the larger",
            "vertebrae_unevenly_spaced",
        ),
        (
            "density of acute blood",
            "{:g} to {:g} HU".format(*intracranial_hemorrhage_volume.BLOOD_HU),
            "outside_blood_range",
        ),
        (
            "plausible hemorrhage",
            f"to {intracranial_hemorrhage_volume.PLAUSIBLE_ML[1]:g} mL",
            "implausible",
        ),
    ]
    return _table(("limit", "value", "code"), [(name, value, f"`{code}`") for name, value, code in rows])


def codes() -> str:
    """Every reason code with its sentence, by the place where it is met."""
    parts: list[str] = []
    for place, title in PLACES.items():
        rows = [(f"`{reason.code}`", reason.sentence) for reason in REASONS if place in reason.places]
        parts += [f"### {title}", _table(("code", "what it means, what to do"), rows)]
    return "\n\n".join(parts)


def page(text: str) -> str:
    """`text` with its tables made anew.

    Raises:
        ValueError: it has no place for one of them.
    """
    for name, made in (("measured", measured()), ("organs", organs()), ("limits", limits()), ("codes", codes())):
        found = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not found.search(text):
            raise ValueError(f"no place for the table {name}")
        text = found.sub(lambda match, made=made: f"{match[1]}\n{made}\n\n{match[2]}", text)
    return text


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    """Write the page."""
    OUTPUT.write_text(page(OUTPUT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
