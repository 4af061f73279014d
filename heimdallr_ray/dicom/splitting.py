"""Images that lie at the same places told apart: reconstructions first, then the phases of a time series.

Nothing is guessed: images are parted only where one attribute of theirs gives groups of which none holds a place twice
and one holds nearly all places. Where nothing does, they stay together and `geometry.stack` refuses them by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom import geometry
from heimdallr_ray.dicom.header import FramePlane, Header, Triple
from heimdallr_ray.errors import NotAVolume

MAX_SPLIT: Final = 16
"""Phases that a series is split into; a longer time series stays one part, which is refused as a whole."""

WHOLE_SHARE: Final = 0.9
"""The largest phase covers at least this share of all places; shorter pieces are table positions, not phases."""

OVERLAP_SHARE: Final = 0.5
"""Acquisitions whose extents overlap by this share of the shorter one are phases, even where no place is repeated."""


class Image(NamedTuple):
    """One image: what its object says, where it lies, and which object it is in."""

    header: Header
    plane: FramePlane
    locator: str


class Part(NamedTuple):
    """Indices of images that belong to one stack; `phase` from 1 of `phases`, None where there is one only."""

    members: list[int]
    phase: int | None = None
    phases: int = 1


_Key = Callable[[Image], object]

_RECONSTRUCTIONS: Final[tuple[_Key, ...]] = (
    lambda image: image.header.kernel,
    lambda image: image.header.kvp,
    lambda image: image.header.image_type,
)
"""What tells reconstructions or energies apart that a sender put into one series."""

_PHASES: Final[tuple[_Key, ...]] = (
    lambda image: image.plane.phase,
    lambda image: image.header.temporal_position,
    lambda image: image.plane.time_offset_s,
    lambda image: image.plane.cardiac_phase_percent,
    lambda image: image.plane.trigger_time_ms,
    lambda image: image.plane.acquisition_number,
    lambda image: image.header.acquisition_number,
    lambda image: image.header.trigger_time_ms,
    lambda image: image.plane.acquired_at,
    lambda image: image.header.acquisition_date + image.header.acquisition_time,
    lambda image: image.header.content_time,
    lambda image: image.locator if image.header.number_of_frames > 1 else "",
)
"""What may tell phases apart, the standard's own attributes first (PS3.3 sections C.7.6.16.2.2, C.7.6.16.2.7 and
C.7.6.18); of multi-frame objects, the object itself last."""

_ACQUISITIONS: Final[tuple[_Key, ...]] = (
    lambda image: image.plane.phase,
    lambda image: image.header.temporal_position,
    lambda image: image.header.acquisition_number,
)


def parts_of(images: Sequence[Image]) -> list[Part]:
    """The stacks that images of one orientation form; all of them in one where nothing tells them apart."""
    everything = list(range(len(images)))
    places = _places(images)
    if places is None:
        return [Part(everything)]
    found: list[Part] = []
    for members in _parted(images, places, everything, _RECONSTRUCTIONS) or [everything]:
        phases = (
            _parted(images, places, members, _PHASES)
            or _by_instance_number(images, places, members)
            or _interleaved(images, members)
            or [members]
        )
        if len(phases) == 1:
            found.append(Part(members))
        else:
            found += [Part(phase, number, len(phases)) for number, phase in enumerate(phases, start=1)]
    return found


def _positions(images: Sequence[Image]) -> list[Triple]:
    return [image.plane.ipp for image in images if image.plane.ipp is not None]


def _places(images: Sequence[Image]) -> NDArray[np.intp] | None:
    """`[image]`: number of the place of each image along the normal; None where it cannot be told."""
    positions, iop = _positions(images), images[0].plane.iop
    if iop is None or len(positions) < len(images):
        return None
    try:
        distances = geometry.distances_mm(positions, iop)
    except NotAVolume:
        return None
    order = np.argsort(distances, kind="stable")
    places = np.empty(len(images), np.intp)
    places[order] = np.repeat(np.arange(len(counts := geometry.repeats(distances))), counts)
    return places


def _parted(
    images: Sequence[Image], places: NDArray[np.intp], members: list[int], keys: Sequence[_Key]
) -> list[list[int]] | None:
    """`members` by the first key that parts them as this module's first lines say; None where none does."""
    here = places[members]
    distinct, counts = np.unique(here, return_counts=True)
    repeated = len(here) - len(distinct)
    if len(distinct) < 2 or (counts.min() < 2 and repeated <= max(1.0, geometry.DUPLICATE_SHARE * len(distinct))):
        return None
    for key in keys:
        groups = _grouped(images, members, key)
        if not 2 <= len(groups) <= MAX_SPLIT:
            continue
        sizes = [len(group) for group in groups]
        once = all(len(np.unique(places[group])) == size for group, size in zip(groups, sizes, strict=True))
        if once and max(sizes) >= WHOLE_SHARE * len(distinct):
            return groups
    return None


def _by_instance_number(
    images: Sequence[Image], places: NDArray[np.intp], members: list[int]
) -> list[list[int]] | None:
    """Phases by the order of acquisition alone: place after place in each phase, or phase after phase at each place."""
    numbered = [(images[index].header.instance_number, index) for index in members]
    distinct = len(np.unique(places[members]))
    times, rest = divmod(len(members), distinct)
    numbers = {number for number, _ in numbered}
    if rest or not 2 <= times <= MAX_SPLIT or distinct < 2 or None in numbers or len(numbers) < len(members):
        return None
    order = np.array([index for _, index in sorted(numbered, key=lambda one: one[0] or 0)])
    for table in (order.reshape(times, distinct), order.reshape(distinct, times).T):
        at = places[table]
        if (at == at[0]).all() and len(np.unique(at[0])) == distinct:
            return [[int(index) for index in phase] for phase in table]
    return None


def _interleaved(images: Sequence[Image], members: list[int]) -> list[list[int]] | None:
    """Whole CT acquisitions of one body region whose slices lie between each other's, so that no place is repeated.

    Together they would pass for one stack of half the distance. Table positions of one scan follow each other instead.
    """
    iop = images[members[0]].plane.iop
    if iop is None or images[members[0]].header.modality != "CT":
        return None
    distances = geometry.distances_mm(_positions(images), iop)
    for key in _ACQUISITIONS:
        groups = _grouped(images, members, key)
        if not 2 <= len(groups) <= MAX_SPLIT:
            continue
        spans = [(distances[group].min(), distances[group].max()) for group in groups]
        shortest = min(high - low for low, high in spans)
        common = min(high for _, high in spans) - max(low for low, _ in spans)
        if shortest > 0 and common >= OVERLAP_SHARE * shortest:
            return groups
    return None


def _grouped(images: Sequence[Image], members: list[int], key: _Key) -> list[list[int]]:
    groups: dict[object, list[int]] = defaultdict(list)
    for index in members:
        groups[key(images[index])].append(index)
    return [groups[value] for value in sorted(groups, key=_order)]


def _order(value: object) -> tuple[float, str]:
    number = re.sub(r"[^0-9.\-]", "", str(value))
    try:
        return float(number), str(value)
    except ValueError:
        return 0.0, str(value)
