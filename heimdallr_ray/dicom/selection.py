"""`select`: which series of a study becomes the volume, and why each other one does not.

RULES refuse, in order, by code; ORDER ranks what is left. Both are tables, read from top to bottom; nothing depends on
pixels, on the order of arrival or on the clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from heimdallr_ray.dicom import geometry
from heimdallr_ray.dicom.checks import checked_slices
from heimdallr_ray.dicom.grouping import Kind, Series, stack_of
from heimdallr_ray.dicom.kernels import Sharpness, sharpness
from heimdallr_ray.dicom.read import is_cut
from heimdallr_ray.errors import NotAVolume, TooLarge
from heimdallr_ray.ids import Uid

Purpose = Literal["volume"]

MIN_SLICES: Final = 10
"""Fewer slices are scouts, single levels and monitoring images, not a volume to measure."""

MAX_THICKNESS_MM: Final = {"CT": 5.0, "MR": 8.0}
"""Thicker slices blur organ borders beyond use. MR is read with thicker slices than CT."""

IDEAL_THICKNESS_MM: Final = (1.0, 2.0)
"""What the segmentation models were trained at (1.5 mm)."""

NOISY_THICKNESS_MM: Final = 0.8
"""Thinner series are noisier and slower; they come after a thicker one of the same scan."""

SMALL_FIELD_MM: Final = 200.0
"""A body does not fit into a smaller field of view: a zoomed reconstruction."""

AXIAL_MIN: Final = 0.8
"""|normal . z| below this is a coronal or sagittal stack."""

COVERAGE_SHARE: Final = 0.92
COVERAGE_SLACK_MM: Final = 50.0
"""A series that is shorter than the longest by no more than either covers as much."""

USUAL_KVP: Final = 120.0

_PROJECTION_TYPES: Final = frozenset(
    {"MIP", "MINIP", "AVERAGE", "PROJECTION IMAGE", "CSA MIP", "SUBTRACTION", "MONO", "IODINE", "VNC", "MEAN", "MAX_IP"}
)
_PROJECTION_WORDS: Final = re.compile(r"\b(mip|minip|vrt|avg)\b", re.IGNORECASE)
_REFORMAT_TYPES: Final = frozenset({"REFORMATTED", "MPR", "CSA MPR", "CSAPARALLEL"})


@dataclass(frozen=True)
class Facts:
    """What the rules look at, computed once per series."""

    slices: int
    thickness_mm: float
    extent_mm: float
    field_mm: float
    axial: float
    sharpness: Sharpness | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class SeriesDecision:
    """One series (or part of one), accepted or refused by `code`, with the reason in words.

    Attributes:
        series_uid: as `Series.uid`.
        part: as `Series.part`.
        score: name and value of everything that ranked it, best = lowest, in the order of ranking; empty where refused.
        accepted: True for the chosen series alone.
    """

    series_uid: Uid
    part: int
    accepted: bool
    code: str
    reason: str
    description: str = ""
    instances: int = 0
    score: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Selection:
    """The chosen series, or None, and one decision per series in the order given."""

    chosen: Series | None
    decisions: tuple[SeriesDecision, ...]


@dataclass(frozen=True)
class Rule:
    """A reason to refuse a series by its headers: `test` returns the reason in words, or None."""

    code: str
    test: Callable[[Series], str | None]


def _not_volume_sop(series: Series) -> str | None:
    header = series.header
    return (
        f"storage class {header.sop_class_uid or '(blank)'} is no CT or MR image" if series.kind is Kind.OTHER else None
    )


def _localizer(series: Series) -> str | None:
    return "planning image (localizer, scout)" if series.kind is Kind.LOCALIZER else None


def _colour(series: Series) -> str | None:
    header = series.header
    if header.samples_per_pixel == 1 and header.photometric in ("", "MONOCHROME1", "MONOCHROME2"):
        return None
    return f"{header.samples_per_pixel} samples per pixel, {header.photometric}: a picture, not measured values"


def _mosaic(series: Series) -> str | None:
    return "several slices tiled in one image (mosaic)" if "MOSAIC" in series.header.image_type else None


def _multiframe_without_groups(series: Series) -> str | None:
    bare = any(len(item.header.planes) != item.header.number_of_frames for item in series.instances)
    return "frames that do not say where they lie (no functional groups)" if bare else None


def _projection(series: Series) -> str | None:
    header = series.header
    words = _PROJECTION_TYPES.intersection(header.image_type)
    if header.image_type[:1] == ("DERIVED",) and words:
        return f"derived pixels: {', '.join(sorted(words))}"
    found = _PROJECTION_WORDS.search(header.series_description)
    return f'the description says "{found[0]}"' if found else None


def _truncated(series: Series) -> str | None:
    cut = sum(is_cut(item.header, item.size) for item in series.instances)
    return f"{cut} of {len(series.instances)} objects end inside their pixels" if cut else None


def _too_few_slices(series: Series) -> str | None:
    return f"{series.frames} slices, at least {MIN_SLICES} are needed" if series.frames < MIN_SLICES else None


def _too_thick(series: Series) -> str | None:
    thickness, most = series.header.slice_thickness_mm, MAX_THICKNESS_MM.get(series.modality)
    if thickness is None or most is None or thickness <= most:
        return None
    return f"slices {thickness:g} mm thick, at most {most:g} mm can be measured"


def _sharp_kernel(series: Series) -> str | None:
    kernel = series.header.kernel
    if series.modality != "CT" or sharpness(kernel) is not Sharpness.SHARP:
        return None
    return f"kernel {kernel} is for bone or lung; its noise spoils soft tissue values"


RULES: Final[tuple[Rule, ...]] = (
    Rule("not_volume_sop", _not_volume_sop),
    Rule("localizer", _localizer),
    Rule("colour", _colour),
    Rule("mosaic", _mosaic),
    Rule("multiframe_without_groups", _multiframe_without_groups),
    Rule("projection", _projection),
    Rule("truncated", _truncated),
    Rule("too_few_slices", _too_few_slices),
    Rule("too_thick", _too_thick),
    Rule("sharp_kernel", _sharp_kernel),
)
"""After these come the codes of `checks.checked_slices`, `grouping.stack_of` and `geometry.stack`: no_geometry,
variable_spacing, missing_slices, four_d, ..."""


def select(series_list: Sequence[Series], purpose: Purpose = "volume") -> Selection:
    """The series that becomes the volume, with one decision for each; the same for any order of input.

    Never raises on what a sender wrote: a series that cannot be judged is refused by code.
    """
    if purpose != "volume":
        raise ValueError(purpose)
    judged = [_judge(series) for series in series_list]
    facts = {index: found for index, found in enumerate(judged) if isinstance(found, Facts)}
    ranks = {index: _score(series_list[index], facts[index], facts, series_list) for index in facts}
    ordered = sorted(
        facts,
        key=lambda index: (*(value for _, value in ranks[index]), series_list[index].uid, series_list[index].part),
    )
    best = ordered[0] if ordered else None
    decisions = tuple(
        found
        if isinstance(found, SeriesDecision)
        else _ranked(series_list[index], found, ranks[index], None if best in (None, index) else ranks[best])
        for index, found in enumerate(judged)
    )
    return Selection(None if best is None else series_list[best], decisions)


def _judge(series: Series) -> Facts | SeriesDecision:
    for rule in RULES:
        reason = rule.test(series)
        if reason is not None:
            return _refused(series, rule.code, reason)
    try:
        return _facts(series)
    except NotAVolume as error:
        return _refused(series, error.reason, error.detail)
    except TooLarge as error:
        return _refused(series, error.code, error.detail)


def _refused(series: Series, code: str, reason: str) -> SeriesDecision:
    return SeriesDecision(
        series_uid=series.uid,
        part=series.part,
        accepted=False,
        code=code,
        reason=reason,
        description=series.header.series_description,
        instances=len(series.instances),
    )


def _facts(series: Series) -> Facts:
    slices = checked_slices(series)
    found, iop, spacing = stack_of(slices)
    geometry.affine_ras(found, iop, spacing)
    header = series.header
    rows, columns = header.rows or 0, header.columns or 0
    thickness = header.slice_thickness_mm
    return Facts(
        slices=len(found.order),
        thickness_mm=thickness if thickness is not None and thickness > 0 else found.spacing_mm,
        extent_mm=found.extent_mm,
        field_mm=min(rows * spacing[0], columns * spacing[1]),
        axial=abs(float(geometry.axes_of(iop)[2][2])),
        sharpness=sharpness(header.kernel),
        flags=found.flags,
    )


def _penalty(series: Series, facts: Facts) -> float:
    """Sum of what speaks against a series that can nevertheless be measured."""
    return float(
        1 * bool(_REFORMAT_TYPES.intersection(series.header.image_type))
        + 2 * (facts.axial < AXIAL_MIN)
        + 2 * (series.modality == "CT" and facts.field_mm < SMALL_FIELD_MM)
        + 1 * any(flag.startswith(("missing_slices", "tilt")) for flag in facts.flags)
    )


def _thickness_order(facts: Facts, thicker_exists: bool) -> float:
    low, high = IDEAL_THICKNESS_MM
    away = max(low - facts.thickness_mm, facts.thickness_mm - high, 0.0)
    return round(away, 2) + (1.0 if facts.thickness_mm < NOISY_THICKNESS_MM and thicker_exists else 0.0)


def _score(
    series: Series, facts: Facts, everyone: dict[int, Facts], series_list: Sequence[Series]
) -> tuple[tuple[str, float], ...]:
    """ORDER: what ranks first stands first; the lowest wins."""
    rivals = [other for index, other in everyone.items() if series_list[index].modality == series.modality]
    longest = max(other.extent_mm for other in rivals)
    covers = facts.extent_mm >= max(COVERAGE_SHARE * longest, longest - COVERAGE_SLACK_MM) - 1e-6
    thicker = any(other.thickness_mm >= NOISY_THICKNESS_MM for other in rivals)
    kvp = series.header.kvp
    number = series.header.series_number
    return (
        ("modality", 0.0 if series.modality == "CT" else 1.0),
        ("penalty", _penalty(series, facts)),
        ("coverage", 0.0 if covers else 1.0),
        ("kernel", float(Sharpness.MEDIUM if facts.sharpness is None else facts.sharpness)),
        ("thickness", _thickness_order(facts, thicker)),
        ("phase", float(series.phase or 0)),
        ("energy", 0.0 if kvp is None else abs(kvp - USUAL_KVP)),
        ("slices", -float(facts.slices)),
        ("series_number", 1e9 if number is None else float(number)),
    )


def _ranked(
    series: Series,
    facts: Facts,
    score: tuple[tuple[str, float], ...],
    best: tuple[tuple[str, float], ...] | None,
) -> SeriesDecision:
    kernel = series.header.kernel or "not named"
    described = (
        f"{facts.slices} slices of {facts.thickness_mm:g} mm over {facts.extent_mm:.0f} mm, kernel {kernel}"
        + (f", phase {series.phase}" if series.phase else "")
        + (f", {', '.join(facts.flags)}" if facts.flags else "")
    )
    if best is None:
        code, reason = "chosen", described
    else:
        worse = next((name for (name, mine), (_, its) in zip(score, best, strict=True) if mine != its), "uid")
        code, reason = "outranked", f"another series is preferred by {worse}; this one: {described}"
    return SeriesDecision(
        series_uid=series.uid,
        part=series.part,
        accepted=best is None,
        code=code,
        reason=reason,
        description=series.header.series_description,
        instances=len(series.instances),
        score=score,
    )
