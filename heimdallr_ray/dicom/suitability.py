"""Whether a series may be measured at all: one evaluator per refusal. Headers only.

The order, and every number and word, comes from the rule file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from pydicom.uid import UID

from heimdallr_ray.dicom import geometry
from heimdallr_ray.dicom.checks import checked_slices
from heimdallr_ray.dicom.grouping import MAX_PHASES, Kind, Series, stack_of
from heimdallr_ray.dicom.kernels import Sharpness, sharpness
from heimdallr_ray.dicom.read import is_cut
from heimdallr_ray.dicom.rules import Profile, Purpose, SeriesRules
from heimdallr_ray.dicom.words import first_word
from heimdallr_ray.errors import NotAVolume

GAP_FACTOR: Final = 1.2
"""From this distance on, in thicknesses, slices have gaps between them; the true thickness may differ a little."""


@dataclass(frozen=True)
class Seen:
    """What an evaluator looked at, and why it refuses; `refused` is empty where it does not."""

    value: str
    refused: str = ""


@dataclass(frozen=True)
class Study:
    """All series of a study, and the rules that they are judged by."""

    series: tuple[Series, ...]
    rules: SeriesRules
    purpose: Purpose

    @cached_property
    def profiles(self) -> tuple[Profile, ...]:
        """Of the purpose, the preferred modality first."""
        return self.rules.profiles(self.purpose)

    def profile_of(self, series: Series) -> Profile:
        """The profile for the series' modality; the first one where there is none, which then refuses it."""
        return next((one for one in self.profiles if one.modality == series.modality), self.profiles[0])

    def modality_rank(self, series: Series) -> int:
        """Place of the series' modality in the purpose."""
        return self.profiles.index(self.profile_of(series))

    def sharpness(self, series: Series) -> Sharpness:
        """Of the series' kernel."""
        header = series.header
        return sharpness(header.kernel, self.rules.file.kernels, header.manufacturer)


@dataclass(frozen=True)
class Facts:
    """What ranks a series that can be measured, computed once."""

    slices: int
    thickness_mm: float
    extent_mm: float
    field_mm: float
    axial: float
    flags: tuple[str, ...]
    apart: bool = False
    """`thickness_mm` is the distance of the slices, which are thinner themselves."""


@dataclass(frozen=True)
class Rule:
    """A reason to refuse a series by its headers."""

    code: str
    test: Callable[[Series, Profile, Study], Seen]


def _not_volume_sop(series: Series, _profile: Profile, _study: Study) -> Seen:
    uid = series.header.sop_class_uid
    name = "(blank)" if uid is None else UID(uid).name
    return Seen(name, f"storage class {name} is no CT or MR image" if series.kind is Kind.OTHER else "")


def _wrong_modality(series: Series, _profile: Profile, study: Study) -> Seen:
    wanted = [one.modality for one in study.profiles]
    given = series.modality or "(blank)"
    return Seen(given, "" if given in wanted else f"{given} images do not serve this purpose: {' or '.join(wanted)} do")


def _localizer(series: Series, _profile: Profile, study: Study) -> Seen:
    value = "\\".join(series.header.image_type) or "no image type"
    if series.kind is Kind.LOCALIZER:
        return Seen(value, "planning image (localizer, scout)")
    parts = [one for one in study.series if one.uid == series.uid and one.kind is Kind.STACK]
    images = sum(one.frames for one in parts)
    planes = {one.header.iop for one in parts if one.header.iop is not None}
    if len(planes) > 1 and images < _FEW_IMAGES:
        return Seen(
            f"{value}, {images} images in {len(planes)} orientations", "planning images: few, in several planes"
        )
    return Seen(value)


def _colour(series: Series, _profile: Profile, _study: Study) -> Seen:
    header = series.header
    value = f"{header.samples_per_pixel} samples per pixel, {header.photometric or 'photometric interpretation blank'}"
    plain = header.samples_per_pixel == 1 and header.photometric in ("", "MONOCHROME1", "MONOCHROME2")
    return Seen(value, "" if plain else f"{value}: a picture, not measured values")


def _mosaic(series: Series, _profile: Profile, _study: Study) -> Seen:
    tiled = "MOSAIC" in series.header.image_type
    return Seen(
        "tiled" if tiled else "one slice per image", "several slices tiled in one image (mosaic)" if tiled else ""
    )


def _multiframe_without_groups(series: Series, _profile: Profile, _study: Study) -> Seen:
    bare = any(len(item.header.planes) != item.header.number_of_frames for item in series.instances)
    reason = "frames that do not say where they lie (no functional groups)" if bare else ""
    return Seen(f"{series.frames} frames in {len(series.instances)} objects", reason)


def _not_hounsfield(series: Series, profile: Profile, _study: Study) -> Seen:
    named = {name for item in series.instances for name in item.header.rescale_types}
    value = ", ".join(sorted(named)) or "rescale type not named"
    # PS3.3 section C.11.1.1.2: MGML, Z_EFF, EDW, HU_MOD, PCT, ... are no Hounsfield units.
    others = sorted(named - set(profile.rescale_types)) if profile.rescale_types else []
    return Seen(value, f"values in {', '.join(others)}, not in Hounsfield units" if others else "")


def _projection(series: Series, profile: Profile, _study: Study) -> Seen:
    header = series.header
    values = header.image_type[2:]
    words = profile.map_types
    if header.image_type[:1] == ("DERIVED",):
        words = (*profile.projection_types, *words)
    types = [value for value in values if first_word(value, words) is not None]
    if types:
        return Seen("\\".join(header.image_type), f"derived pixels: {', '.join(types)}")
    # What an original image is merely called is weighed in `ranking`.
    doubtful = () if header.image_type[:1] == ("ORIGINAL",) else profile.doubtful_words
    word = first_word(header.series_description, (*profile.projection_words, *doubtful))
    return Seen(header.series_description or "no description", f'the description says "{word}"' if word else "")


def _truncated(series: Series, _profile: Profile, _study: Study) -> Seen:
    cut = sum(is_cut(item.header, item.size) for item in series.instances)
    value = f"{cut} of {len(series.instances)} objects end inside their pixels"
    return Seen(value, value if cut else "")


def _too_few_slices(series: Series, profile: Profile, _study: Study) -> Seen:
    value = f"{series.frames} slices"
    few = series.frames < profile.min_slices
    return Seen(value, f"{value}, at least {profile.min_slices} are needed" if few else "")


def _too_thick(series: Series, profile: Profile, _study: Study) -> Seen:
    header = series.header
    thickness = header.slice_thickness_mm or header.spacing_between_slices_mm
    if thickness is None:
        return Seen("thickness not named")
    return too_thick(thickness, profile, apart=not header.slice_thickness_mm)


def too_thick(thickness_mm: float, profile: Profile, *, apart: bool = False) -> Seen:
    """The refusal `too_thick`; `apart`: of the slice distance, asked once that is known."""
    most = profile.max_thickness_mm
    said = f"up to {thickness_mm:g} mm apart" if apart else f"{thickness_mm:g} mm thick"
    return Seen(said, f"slices {said}, at most {most:g} mm can be measured" if thickness_mm > most else "")


def _sharp_kernel(series: Series, _profile: Profile, study: Study) -> Seen:
    kernel = series.header.kernel
    found = study.sharpness(series)
    value = f"{kernel or 'not named'}: {found}"
    sharp = found is Sharpness.SHARP
    return Seen(value, f"kernel {kernel} is for bone or lung; its noise spoils soft tissue values" if sharp else "")


_FEW_IMAGES: Final = 10

RULES: Final = {
    rule.code: rule
    for rule in (
        Rule("not_volume_sop", _not_volume_sop),
        Rule("wrong_modality", _wrong_modality),
        Rule("localizer", _localizer),
        Rule("colour", _colour),
        Rule("mosaic", _mosaic),
        Rule("multiframe_without_groups", _multiframe_without_groups),
        Rule("not_hounsfield", _not_hounsfield),
        Rule("projection", _projection),
        Rule("truncated", _truncated),
        Rule("too_few_slices", _too_few_slices),
        Rule("too_thick", _too_thick),
        Rule("sharp_kernel", _sharp_kernel),
    )
}
"""After these come the codes of `checks.checked_slices`, `grouping.stack_of` and `geometry.stack`: no_geometry,
variable_spacing, missing_slices, four_d, ..."""


def facts_of(series: Series) -> Facts:
    """What the headers say of the volume that the series would become.

    Raises:
        NotAVolume: it becomes none; names the rule.
        TooLarge: beyond `limits`.
    """
    if series.phases > MAX_PHASES:
        raise NotAVolume("four_d", f"one of {series.phases} phases of a perfusion or functional series")
    slices = checked_slices(series)
    found, iop, spacing = stack_of(slices, resample=True)
    geometry.affine_ras(found, iop, spacing)
    header = series.header
    rows, columns = header.rows or 0, header.columns or 0
    thickness = named = header.slice_thickness_mm if (header.slice_thickness_mm or 0) > 0 else None
    if found.places:
        # Where slices are blended, what lies between them is as blurred as a slice of that width.
        thickness = max(thickness or 0.0, found.gaps_mm[1])
    elif thickness is not None and found.spacing_mm > GAP_FACTOR * thickness:
        # Thin slices far apart: what lies between them was not imaged, and is as unknown as in a thick one.
        thickness = found.spacing_mm
    return Facts(
        slices=len(found.order),
        # Positions are written with few decimals: 5.00004 mm is 5 mm.
        thickness_mm=round(found.spacing_mm if thickness is None else thickness, 2),
        extent_mm=found.extent_mm,
        field_mm=min(rows * spacing[0], columns * spacing[1]),
        axial=abs(float(geometry.axes_of(iop)[2][2])),
        flags=found.flags,
        apart=named is None or thickness != named,
    )
