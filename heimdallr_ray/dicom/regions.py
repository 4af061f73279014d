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
    outside = max(its[0] - mine[0], 0.0) + max(mine[1] - its[1], 0.0)
    if outside <= OUTSIDE_MM:
        return []
    # A longer scan of what is measured shows more than its name tells.
    regions = [region for region in named if region not in measured] or [UNNAMED]
    return [Unmeasured(region, series.uid, round(min(outside, mine[1] - mine[0]), 1)) for region in regions]


def _named(header: Header) -> tuple[str, ...]:
    for text in (f"{header.body_part} {header.series_description}", header.protocol_name):
        found = tuple(region for region, words in REGIONS.items() if first_word(text, words) is not None)
        if found:
            return found
    return ()


def _along(series: Series) -> tuple[float, float] | None:
    """From where to where the series reaches along the patient (LPS z, mm); None where a header does not tell."""
    ends: list[float] = []
    for number, item in enumerate(series.instances):
        planes = item.header.planes
        wanted = series.frame_sets[number] if series.frame_sets else range(len(planes))
        for frame in wanted:
            if frame < len(planes):
                ends += _corners(planes[frame], item.header)
    return (min(ends), max(ends)) if ends else None


def _corners(plane: FramePlane, header: Header) -> list[float]:
    if plane.ipp is None or plane.iop is None or plane.pixel_spacing is None:
        return []
    across = plane.iop[2] * plane.pixel_spacing[1] * (header.columns or 0)
    down = plane.iop[5] * plane.pixel_spacing[0] * (header.rows or 0)
    return [plane.ipp[2] + a + b for a in (0.0, across) for b in (0.0, down)]
