"""Which parts of the body a study holds that lie outside the series that is measured. Headers only, pure.

One series is measured; what another one shows elsewhere is looked at by nobody, and the result has to say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from heimdallr_ray.dicom.decisions import Selection
from heimdallr_ray.dicom.grouping import Kind, Series
from heimdallr_ray.dicom.header import FramePlane, Header
from heimdallr_ray.dicom.words import first_word
from heimdallr_ray.ids import Uid

OUTSIDE_MM: Final = 50.0
"""As much of a scan may reach beyond the measured one: scans of one region differ by as much."""
UNNAMED: Final = "unnamed"

REFORMATS: Final = ("reformatted", "mpr", "csa mpr", "csaparallel", "resampled")
"""Words of Image Type (0008,0008), the standard's and vendors', for planes that were computed through another stack."""
AXIAL_MIN: Final = 0.8
"""|normal . z| of what a CT acquires: a gantry tilts by 30 degrees at most (0.87)."""
TALL: Final = 1.1
"""Reformats are padded until they are square; what is taller by this, than wide or than the scan, was scanned."""

_WHOLE: Final = "whole body, wholebody"
_TRUNK: Final = f"cap, tap, trunk, torso, body, partialbody, {_WHOLE}"
_BELLY: Final = f"kub, a/p, abdomenpelvis, abdpel, {_TRUNK}"
REGIONS: Final[Mapping[str, tuple[str, ...]]] = {
    region: tuple(word.strip() for word in words.split(","))
    for region, words in {
        "head": "head, brain, skull, cranium, cranial, cranio, neuro, orbit, orbits, sinus, sinuses, ear, face, "
        f"facial, jaw, mandible, maxilla, temporal, posterior fossa, kopf, schädel, tete, cabeza, {_WHOLE}",
        "neck": f"neck, c spine, cervical, larynx, carotid, carotids, hals, cou, cuello, {_WHOLE}",
        "chest": "chest, thorax, torax, lung, lungs, heart, cardiac, coronary, t spine, thoracic, pulmonary, " + _TRUNK,
        "abdomen": "abdomen, abd, abdominal, liver, pancreas, kidney, kidneys, renal, spleen, l spine, lumbar, "
        + _BELLY,
        "pelvis": f"pelvis, pel, pelvic, hip, hips, bladder, becken, {_BELLY}",
        "limb": "extremity, leg, knee, ankle, foot, femur, thigh, arm, hand, wrist, elbow, shoulder, humerus, tibia, "
        + _WHOLE,
    }.items()
}
"""Words of Body Part Examined (0018,0015; PS3.16 annex L), descriptions and protocols. Our own list, not measured."""

_NO_SCAN: Final = frozenset(
    {"not_volume_sop", "wrong_modality", "localizer", "colour", "mosaic", "multiframe_without_groups", "projection",
     "not_hounsfield", "too_few_slices"}
)  # fmt: skip
"""Refusals of what is no scan of its own: pictures, plans, single levels and what was computed from other series."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Unmeasured:
    """A part of the body that only an unmeasured series shows.

    Attributes:
        region: a name of `REGIONS`, or `UNNAMED` where no header names it.
        series_uid: of the series that shows it.
        outside_mm: how far the series reaches beyond the measured one; None where they cannot be compared in space.
    """

    region: str
    series_uid: Uid
    outside_mm: float | None


def unmeasured_regions(selection: Selection) -> tuple[Unmeasured, ...]:
    """What the other series of the study show outside the chosen one, in the order of the series.

    Series in one frame of reference are compared along the patient. Others by the regions that their headers name;
    where one names none, along the patient all the same: one sitting at the scanner mostly keeps its coordinates.

    The images of a reformat reach as far as its padding, which shows nothing: it counts only where the middles of its
    images lie outside, where it is taller than wide or than the chosen scan, or where it names another region than the
    chosen one does. A sagittal or coronal MR that was acquired is no reformat.
    """
    chosen = selection.chosen
    if chosen is None:
        return ()
    found: dict[tuple[str, Uid], Unmeasured] = {}
    for series, decision in zip(selection.series, selection.decisions, strict=True):
        if series is chosen or series.kind is not Kind.STACK or series.modality != chosen.modality:
            continue
        if decision.code in _NO_SCAN:
            continue
        for one in _beyond(series, chosen):
            found.setdefault((one.region, one.series_uid), one)
    return tuple(found.values())


def flags(unmeasured: tuple[Unmeasured, ...]) -> tuple[str, ...]:
    """Flags of the image: `region_not_measured:head`, each region once."""
    made: list[str] = []
    for region in dict.fromkeys(one.region for one in unmeasured):
        made.append(f"region_not_measured:{region}")
    return tuple(made)


def _beyond(series: Series, chosen: Series) -> list[Unmeasured]:
    named, measured = _named(series.header), _named(chosen.header)
    frame, other = series.header.frame_of_reference_uid, chosen.header.frame_of_reference_uid
    if frame != other and named and measured:
        return [Unmeasured(region, series.uid, None) for region in named if region not in measured]
    mine, its = _along(series), _along(chosen)
    if mine is None or its is None:
        return []
    outside = _outside(mine, its)
    if outside <= OUTSIDE_MM:
        return []
    others = [region for region in named if region not in measured]
    if not (measured and others) and _may_be_padding(series, chosen, its):
        return []
    # A longer scan of what is measured shows more than its name tells.
    regions = others or [UNNAMED]
    return [Unmeasured(region, series.uid, round(min(outside, mine[1] - mine[0]), 1)) for region in regions]


def _named(header: Header) -> tuple[str, ...]:
    for text in (f"{header.body_part} {header.series_description}", header.protocol_name):
        found = tuple(region for region, words in REGIONS.items() if first_word(text, words) is not None)
        if found:
            return found
    return ()


def _along(series: Series) -> Range | None:
    """From where to where the series reaches along the patient (LPS z, mm); None where a header does not tell."""
    ends = [end for image in _images(series) for end in (image.middle - image.half, image.middle + image.half)]
    return (min(ends), max(ends)) if ends else None


def _outside(mine: Range, its: Range) -> float:
    return max(its[0] - mine[0], 0.0) + max(mine[1] - its[1], 0.0)


def _may_be_padding(series: Series, chosen: Series, measured: Range) -> bool:
    """True where what lies outside `measured` may be empty margins of images that were computed from those slices."""
    images = _images(series)
    if not any(_reformatted(series, image) for image in images):
        return False
    middles = [image.middle for image in images]
    # Square images are as large as the scan is long or wide, whichever is more.
    field = max([measured[1] - measured[0], *(max(one.height, one.width) for one in _images(chosen))])
    tall = any(image.height > TALL * min(image.width, field) for image in images if image.normal < AXIAL_MIN)
    return not tall and _outside((min(middles), max(middles)), measured) <= OUTSIDE_MM


def _reformatted(series: Series, image: _Image) -> bool:
    types = series.header.image_type
    if any(first_word(value, REFORMATS) is not None for value in (*types[2:], *image.frame_type[2:])):
        return True
    # PS3.3 C.7.6.1.1.2: derived after the examination; what was derived during it keeps the planes that were acquired.
    return image.normal < AXIAL_MIN and (series.modality == "CT" or types[:2] == ("DERIVED", "SECONDARY"))


@dataclass(frozen=True)
class _Image:
    """One image along the patient, in mm: its middle and half of its reach (LPS z), and its sides."""

    middle: float
    half: float
    height: float
    """Of the side that runs more along the patient."""
    width: float
    normal: float
    """|normal . z|: 1 for an axial image."""
    frame_type: tuple[str, ...]


def _images(series: Series) -> list[_Image]:
    found: list[_Image] = []
    for number, item in enumerate(series.instances):
        planes = item.header.planes
        wanted = series.frame_sets[number] if series.frame_sets else range(len(planes))
        made = [_image(planes[frame], item.header) for frame in wanted if frame < len(planes)]
        found += [one for one in made if one is not None]
    return found


def _image(plane: FramePlane, header: Header) -> _Image | None:
    if plane.ipp is None or plane.iop is None or plane.pixel_spacing is None:
        return None
    row, column = plane.iop[:3], plane.iop[3:]
    across, down = plane.pixel_spacing[1] * (header.columns or 0), plane.pixel_spacing[0] * (header.rows or 0)
    rise = row[2] * across, column[2] * down
    height, width = (across, down) if abs(row[2]) > abs(column[2]) else (down, across)
    return _Image(
        middle=plane.ipp[2] + sum(rise) / 2,
        half=(abs(rise[0]) + abs(rise[1])) / 2,
        height=height,
        width=width,
        normal=abs(row[0] * column[1] - row[1] * column[0]),
        frame_type=plane.frame_type,
    )
