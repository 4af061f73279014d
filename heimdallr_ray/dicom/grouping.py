"""Instances into series, and a series into stacks that could each be one volume. Headers only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from heimdallr_ray.dicom import geometry, limits
from heimdallr_ray.dicom.header import Cosines, FramePlane, Header
from heimdallr_ray.dicom.splitting import Image, Part, parts_of
from heimdallr_ray.errors import NotAVolume, TooLarge
from heimdallr_ray.ids import Uid

CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
VOLUME_SOPS: Final = {
    CT_IMAGE: "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
}
"""Storage classes whose pixels are CT or MR slices (PS3.4 table B.5-1): single-frame, enhanced, legacy converted."""

LOCALIZER_WORDS: Final = frozenset({"LOCALIZER", "SCOUT", "REF_SURVIEW", "TOPOGRAM", "SURVIEW"})

MAX_PHASES: Final = 8
"""A series with more phases is a perfusion or functional one, whose phases are no volumes to measure."""

_ORIENTATION_TOLERANCE: Final = 0.01
_SPACING_TOLERANCE_MM: Final = 1e-3


class Kind(StrEnum):
    """What a part of a series is, by its headers."""

    STACK = "stack"
    LOCALIZER = "localizer"
    OTHER = "other"


@dataclass(frozen=True)
class IndexedInstance:
    """One instance: its header, where its bytes are (opaque to this package), and how many they are."""

    header: Header
    locator: str
    size: int
    content_sha256: str = ""
    """Digest of its data set; empty where only the locator identifies it."""


@dataclass(frozen=True)
class Series:
    """Instances that belong to one acquisition stack, by instance number.

    Attributes:
        uid: Series Instance UID, or one derived from shared attributes where the sender left it blank.
        part: number of this part, where a series was split (localizers, sizes, orientations, phases).
        phase: which phase of a time series, from 1; None where there is one only.
        phases: phases in all.
        frame_sets: for each instance the frames that belong to this stack; empty where all of all do.
    """

    uid: Uid
    kind: Kind
    instances: tuple[IndexedInstance, ...]
    part: int = 0
    parts: int = 1
    phase: int | None = None
    phases: int = 1
    frame_sets: tuple[tuple[int, ...], ...] = ()

    @property
    def header(self) -> Header:
        """The header of the first instance."""
        return self.instances[0].header

    @property
    def modality(self) -> str:
        """CT, MR, ...: by storage class, else by Modality (0008,0060)."""
        return modality_of(self.header)

    @property
    def frames(self) -> int:
        """Images in all instances, as far as they belong to this stack."""
        if self.frame_sets:
            return sum(map(len, self.frame_sets))
        return sum(instance.header.number_of_frames for instance in self.instances)


@dataclass(frozen=True)
class Slice:
    """One image of a series: which instance, which plane."""

    instance: IndexedInstance
    plane: FramePlane


def modality_of(header: Header) -> str:
    """The modality by storage class; blank or unknown classes are judged by Modality (0008,0060)."""
    return VOLUME_SOPS.get(header.sop_class_uid or "", header.modality)


def is_volume_sop(header: Header) -> bool:
    """True where the storage class is a CT or MR image, or blank with such a modality."""
    return header.sop_class_uid in VOLUME_SOPS if header.sop_class_uid else header.modality in ("CT", "MR")


def is_localizer(header: Header) -> bool:
    """True where Image Type (0008,0008) names a planning image (PS3.3 section C.8.2.1.1.1)."""
    return bool(LOCALIZER_WORDS.intersection(header.image_type))


def group(headers: Sequence[IndexedInstance]) -> list[Series]:
    """Series of a study, split into stacks, ordered by series number and UID; the same for any order of input.

    Two instances with one locator are one instance.
    """
    unique = {instance.locator: instance for instance in headers}
    by_uid: dict[Uid, list[IndexedInstance]] = defaultdict(list)
    for instance in sorted(unique.values(), key=_instance_order):
        by_uid[_series_uid(instance.header)].append(instance)
    found: list[Series] = []
    for uid, instances in by_uid.items():
        parts = list(_parts(uid, instances))
        found += [replace(part, part=number, parts=len(parts)) for number, part in enumerate(parts)]
    return sorted(found, key=lambda series: (_number(series.header.series_number), series.uid, series.part))


def slices_of(series: Series) -> list[Slice]:
    """Every image of the series with its plane, in instance order.

    Raises:
        NotAVolume: `multiframe_without_groups`.
    """
    found: list[Slice] = []
    for number, instance in enumerate(series.instances):
        header = instance.header
        if len(header.planes) != header.number_of_frames:
            raise NotAVolume("multiframe_without_groups", "frames without a plane of their own")
        frames = series.frame_sets[number] if series.frame_sets else range(header.number_of_frames)
        found += [Slice(instance, header.planes[frame]) for frame in frames]
    return found


def stack_of(slices: Sequence[Slice], *, resample: bool = False) -> tuple[geometry.Stack, Cosines, tuple[float, float]]:
    """The stack of all `slices`, with their orientation and pixel spacing; `resample` as in `geometry.stack`.

    Raises:
        NotAVolume: `no_geometry`, `not_parallel`, and those of `geometry.stack`.
        TooLarge: the grid takes more than `limits.MAX_PIXEL_BYTES_PER_SERIES`.
    """
    positions = [item.plane.ipp for item in slices if item.plane.ipp is not None]
    first = slices[0].plane
    iop, spacing = first.iop, first.pixel_spacing
    if len(positions) < len(slices) or iop is None or spacing is None:
        raise NotAVolume("no_geometry", "position, orientation or pixel spacing is missing or unreadable")
    for item in slices:
        if item.plane.iop is None or item.plane.pixel_spacing is None:
            raise NotAVolume("no_geometry", "position, orientation or pixel spacing is missing or unreadable")
        if not _same_plane(item.plane, first):
            raise NotAVolume("not_parallel", "slices differ in orientation or pixel spacing")
    found = geometry.stack(positions, iop, resample=resample)
    header = slices[0].instance.header
    grid_bytes = 4 * (header.rows or 0) * (header.columns or 0) * found.slices
    if grid_bytes > limits.MAX_PIXEL_BYTES_PER_SERIES:
        raise TooLarge(f"{found.slices} planes, {grid_bytes} bytes of pixels")
    return found, iop, spacing


def _instance_order(instance: IndexedInstance) -> tuple[int, str]:
    return _number(instance.header.instance_number), instance.content_sha256 or instance.locator


def _number(value: int | None) -> int:
    return 2**40 if value is None else value


def _series_uid(header: Header) -> Uid:
    if header.series_uid is not None:
        return header.series_uid
    shared = (
        *(header.study_uid, header.frame_of_reference_uid, header.modality, header.series_number),
        *(header.series_description, header.protocol_name, header.kernel, header.slice_thickness_mm),
        *(header.study_date, header.patient_id, header.manufacturer),
    )
    return Uid.derived("series without UID", *("" if value is None else str(value) for value in shared))


def _kind(header: Header) -> Kind:
    if not is_volume_sop(header):
        return Kind.OTHER
    return Kind.LOCALIZER if is_localizer(header) else Kind.STACK


def _parts(uid: Uid, instances: Iterable[IndexedInstance]) -> Iterable[Series]:
    kinds: dict[Kind, list[IndexedInstance]] = defaultdict(list)
    for instance in instances:
        kinds[_kind(instance.header)].append(instance)
    for kind in (Kind.STACK, Kind.LOCALIZER, Kind.OTHER):
        members = kinds.get(kind)
        if not members:
            continue
        if kind is not Kind.STACK:
            yield Series(uid, kind, tuple(members))
            continue
        for bucket in _stacks(members):
            slices = [Slice(instance, plane) for instance, plane in bucket if plane is not None]
            if len(slices) < len(bucket):
                yield Series(uid, kind, tuple(dict.fromkeys(instance for instance, _ in bucket)))
                continue
            images = [Image(item.instance.header, item.plane, item.instance.locator) for item in slices]
            for part in parts_of(images):
                yield _series_of(uid, [slices[index] for index in part.members], part)


def _series_of(uid: Uid, slices: Sequence[Slice], part: Part) -> Series:
    frames: dict[str, list[int]] = defaultdict(list)
    for item in slices:
        frames[item.instance.locator].append(item.plane.frame)
    instances = {item.instance.locator: item.instance for item in slices}
    whole = all(len(frames[locator]) == one.header.number_of_frames for locator, one in instances.items())
    return Series(
        uid,
        Kind.STACK,
        tuple(instances.values()),
        phase=part.phase,
        phases=part.phases,
        frame_sets=() if whole else tuple(tuple(frames[locator]) for locator in instances),
    )


def _stacks(instances: Sequence[IndexedInstance]) -> list[list[tuple[IndexedInstance, FramePlane | None]]]:
    """Buckets of one size, frame of reference, echo, orientation and spacing, frame by frame.

    Frames that do not say where they lie have no plane and stay together. Beyond MAX_SERIES_PARTS the rest stays
    together too.
    """
    buckets: list[list[tuple[IndexedInstance, FramePlane | None]]] = []
    by_exact: dict[tuple[object, ...], list[list[tuple[IndexedInstance, FramePlane | None]]]] = defaultdict(list)
    for instance in instances:
        header = instance.header
        shared = (header.rows, header.columns, header.samples_per_pixel, header.echo_time_ms, header.b_value)
        shared = (*shared, header.frame_of_reference_uid)
        if header.number_of_frames > 1:
            shared = (*shared, header.concatenation_uid or instance.locator)
        if modality_of(header) == "MR":
            shared = (*shared, header.image_type)
        described = len(header.planes) == header.number_of_frames
        for plane in header.planes if described else (None,):
            candidates = by_exact[shared if plane is None else (*shared, *_told_by_frame(header, plane))]
            for bucket in candidates:
                other = bucket[0][1]
                if plane is None or other is None or _same_plane(plane, other):
                    bucket.append((instance, plane))
                    break
            else:
                if len(buckets) >= limits.MAX_SERIES_PARTS:
                    buckets[-1].append((instance, plane))
                    continue
                candidates.append([(instance, plane)])
                buckets.append(candidates[-1])
    return buckets


def _told_by_frame(header: Header, plane: FramePlane) -> tuple[object, ...]:
    kind = plane.frame_type if modality_of(header) == "MR" else bool(LOCALIZER_WORDS.intersection(plane.frame_type))
    return plane.stack_id, plane.echo_time_ms, plane.b_value, kind


def _same_plane(a: FramePlane, b: FramePlane) -> bool:
    if a.iop is None or b.iop is None or a.pixel_spacing is None or b.pixel_spacing is None:
        return (a.iop is None, a.pixel_spacing is None) == (b.iop is None, b.pixel_spacing is None)
    return (
        max(abs(x - y) for x, y in zip(a.iop, b.iop, strict=True)) <= _ORIENTATION_TOLERANCE
        and max(abs(x - y) for x, y in zip(a.pixel_spacing, b.pixel_spacing, strict=True)) <= _SPACING_TOLERANCE_MM
    )
