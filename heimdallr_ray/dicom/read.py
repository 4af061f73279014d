"""`read_header`: the facts of one received object, read with bounds and without touching its pixels."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import BinaryIO, Final

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.elements import EXPLICIT, EXPLICIT_BIG, IMPLICIT, PIXEL_DATA, Element, Encoding, NeedMore, Walk
from heimdallr_ray.dicom.header import SYNTHETIC_CREATOR, FramePlane, Header, PixelLocation
from heimdallr_ray.dicom.values import Values
from heimdallr_ray.errors import NotDicom, TooLarge, TruncatedObject

IMPLICIT_LE: Final = "1.2.840.10008.1.2"
EXPLICIT_LE: Final = "1.2.840.10008.1.2.1"
DEFLATED_LE: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE: Final = "1.2.840.10008.1.2.2"

_FLOAT_PIXELS: Final = 0x7FE00008
_PRIVATE_CREATORS: Final = range(0x00090010, 0x00090100)
_META_START: Final = b"\x02\x00\x00\x00UL\x04\x00"


def read_header(source: bytes | BinaryIO | Path, *, stop_before_pixels: bool = True) -> Header:
    """The header of the DICOM object in `source` (a whole object: bytes, a seekable stream or a file).

    Only what lies before the pixels is read, at most `limits.MAX_HEADER_BYTES`. With `stop_before_pixels=False` the
    pixels are not read either, but must be there in the length that is declared.

    Raises:
        NotDicom: no DICOM file (PS3.10 section 7.1), or bytes that are no data set.
        TruncatedObject: the object ends inside its header, or (see above) inside its pixels.
        TooLarge: a bound of `limits` is passed: header size, elements, nesting.
    """
    if isinstance(source, bytes):
        size = len(source)
        header = _grow(io.BytesIO(source), size)
    elif isinstance(source, Path):
        with source.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            header = _grow(stream, size)
    else:
        size = source.seek(0, io.SEEK_END)
        header = _grow(source, size)
    if not stop_before_pixels and is_cut(header, size):
        raise TruncatedObject("the object ends inside its pixels")
    return header


def read_head(head: bytes, size: int) -> Header | None:
    """The header of an object of `size` bytes that begins with `head`; None where it goes on behind `head`.

    Raises:
        NotDicom, TruncatedObject, TooLarge: as `read_header`.
    """
    if size > limits.MAX_OBJECT_BYTES:
        raise TooLarge(f"the object is larger than {limits.MAX_OBJECT_BYTES} bytes")
    try:
        return _parse(Walk(head, size))
    except NeedMore:
        return None


def is_cut(header: Header, size: int) -> bool:
    """True where an object of `size` bytes cannot hold the pixels that its header declares."""
    pixels = header.pixels
    if pixels is None or header.transfer_syntax_uid == DEFLATED_LE:
        return False
    if pixels.length is None:
        return pixels.offset + 8 > size
    if pixels.offset + pixels.length > size:
        return True
    native = header.transfer_syntax_uid in (IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE)
    return native and pixels.length < header.native_pixel_bytes


def _grow(stream: BinaryIO, size: int) -> Header:
    """Parse from as few bytes as needed: each read takes as much as all before it took, and three times more."""
    if size > limits.MAX_OBJECT_BYTES:
        raise TooLarge(f"the object is larger than {limits.MAX_OBJECT_BYTES} bytes")
    buffer = b""

    def more(end: int) -> tuple[bytes, int]:
        nonlocal buffer
        wanted = min(max(end, 4 * len(buffer), limits.FIRST_READ_BYTES), limits.MAX_HEADER_BYTES, size)
        stream.seek(len(buffer))
        buffer += stream.read(wanted - len(buffer))
        if len(buffer) < wanted:
            raise TruncatedObject("the source ends before its size")
        return buffer, size

    more(0)
    return _parse(Walk(buffer, size, more))


def _parse(walk: Walk) -> Header:
    meta, at = _file_meta(walk)
    syntax = str(meta.uid(0x00020010) or IMPLICIT_LE)
    if syntax == DEFLATED_LE:
        return _data_set(_inflating(walk, at), 0, meta, syntax)
    return _data_set(walk, at, meta, syntax)


def encoding_of(syntax: str, buffer: bytes, at: int) -> Encoding:
    """How the data set at `at` is written; some writers declare implicit VR and write explicit, and the reverse."""
    if syntax == EXPLICIT_BE:
        return EXPLICIT_BIG
    looks_explicit = buffer[at + 4 : at + 6].isalpha() and buffer[at + 4 : at + 6].isupper()
    if len(buffer) < at + 6:
        return IMPLICIT if syntax == IMPLICIT_LE else EXPLICIT
    return EXPLICIT if looks_explicit else IMPLICIT


def data_set_offset(buffer: bytes) -> int:
    """The offset of the first byte behind the file meta information.

    Raises:
        NotDicom, TruncatedObject: as `read_header`.
    """
    return _file_meta(Walk(buffer, len(buffer)))[1]


def _file_meta(walk: Walk) -> tuple[Values, int]:
    """File meta information (PS3.10 section 7.1), with or without the 128 bytes of preamble."""
    if walk.buffer[128:132] == b"DICM":
        at = 132
    elif walk.buffer.startswith(_META_START):
        at = 0
    else:
        raise NotDicom("no DICM prefix and no file meta information")
    found: dict[int, Element] = {}
    while True:
        walk.reach(at + 2)
        if walk.buffer[at : at + 2] != b"\x02\x00":
            break
        element = next(walk.elements(at, at + 1, EXPLICIT))
        found[element.tag] = element
        at = element.end
    if not found:
        raise NotDicom("no file meta information")
    return Values(walk, found), at


def _inflating(packed: Walk, at: int) -> Walk:
    """The data set that is deflated from `at` on (PS3.5 section A.5), inflated as far as the walk over it comes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated, taken = b"", at

    def more(end: int) -> tuple[bytes, int | None]:
        nonlocal inflated, taken
        wanted = min(max(end, 4 * len(inflated), limits.FIRST_READ_BYTES), limits.MAX_HEADER_BYTES)
        while len(inflated) < wanted and not inflater.eof:
            source = inflater.unconsumed_tail
            if not source:
                packed.reach(taken + 1)
                source, taken = packed.buffer[taken:], len(packed.buffer)
            try:
                piece = inflater.decompress(source, wanted - len(inflated))
            except zlib.error as error:
                raise NotDicom("the deflated data set is damaged") from error
            if not piece and not source:
                break
            inflated += piece
        return inflated, len(inflated) if len(inflated) < wanted or inflater.eof else None

    return Walk(*more(0), more)


def _data_set(walk: Walk, at: int, meta: Values, syntax: str) -> Header:
    walk.reach(at + 6)
    encoding = encoding_of(EXPLICIT_LE if syntax == DEFLATED_LE else syntax, walk.buffer, at)
    found: dict[int, Element] = {}
    pixels: PixelLocation | None = None
    end = limits.MAX_OBJECT_BYTES if walk.limit is None else walk.limit
    for element in walk.elements(at, end, encoding, stop=_FLOAT_PIXELS):
        if element.tag >= _FLOAT_PIXELS:
            if element.tag in (_FLOAT_PIXELS, _FLOAT_PIXELS + 1, PIXEL_DATA):
                length = None if element.undefined else element.end - element.start
                pixels = PixelLocation(element.at, element.start, length, element.tag == PIXEL_DATA)
            break
        found[element.tag] = element
    if not found:
        raise NotDicom("the data set is empty")
    return _header(Values(walk, found), meta, syntax, pixels)


def _header(v: Values, meta: Values, syntax: str, pixels: PixelLocation | None) -> Header:
    """All attributes, by their place in PS3.6; text lengths are those of PS3.5 table 6.2-1."""
    signed = (v.unsigned(0x00280103, "pixel_representation") or 0) == 1
    bits_allocated = v.unsigned(0x00280100, "bits_allocated") or 0
    bits_stored = v.unsigned(0x00280101, "bits_stored") or bits_allocated
    high_bit = v.unsigned(0x00280102, "high_bit")
    frames = v.integer(0x00280008, "number_of_frames")
    described = 0x52009230 in v and (frames or 1) <= limits.MAX_FRAMES
    if frames is not None and frames < 1:
        v.malformed.append("number_of_frames")
    planes = _described_planes(v) if described else ((_plane(v),) if (frames or 1) == 1 else ())
    manufacturer = v.text(0x00080070, 64)
    return Header(
        transfer_syntax_uid=syntax,
        sop_class_uid=v.uid(0x00080016) or meta.uid(0x00020002),
        sop_uid=v.uid(0x00080018) or meta.uid(0x00020003),
        study_uid=v.uid(0x0020000D),
        series_uid=v.uid(0x0020000E),
        frame_of_reference_uid=v.uid(0x00200052),
        concatenation_uid=v.uid(0x00209161),
        modality=v.text(0x00080060, 16).upper(),
        image_type=v.words(0x00080008, 16, 32),
        manufacturer=manufacturer,
        series_number=v.integer(0x00200011, "series_number"),
        series_description=v.text(0x0008103E, 64),
        protocol_name=v.text(0x00181030, 64),
        body_part=v.text(0x00180015, 16),
        instance_number=v.integer(0x00200013, "instance_number"),
        acquisition_number=v.integer(0x00200012, "acquisition_number"),
        acquisition_date=v.date(0x00080022) or v.text(0x0008002A, 26)[:8],
        acquisition_time=v.text(0x00080032, 16) or v.text(0x0008002A, 26)[8:],
        content_time=v.text(0x00080033, 16),
        temporal_position=v.integer(0x00200100, "temporal_position"),
        trigger_time_ms=v.number(0x00181060, "trigger_time"),
        echo_time_ms=v.number(0x00180081, "echo_time"),
        b_value=v.float64(0x00189087, "b_value"),
        rows=v.unsigned(0x00280010, "rows"),
        columns=v.unsigned(0x00280011, "columns"),
        samples_per_pixel=v.unsigned(0x00280002, "samples_per_pixel") or 1,
        photometric=v.text(0x00280004, 16).upper(),
        planar_configuration=v.unsigned(0x00280006, "planar_configuration") or 0,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else high_bit,
        signed=signed,
        number_of_frames=1 if frames is None else max(frames, 1),
        frames_are_described=described,
        planes=planes,
        slice_thickness_mm=v.number(0x00180050, "slice_thickness"),
        spacing_between_slices_mm=v.number(0x00180088, "spacing_between_slices"),
        gantry_tilt_deg=v.number(0x00181120, "gantry_tilt"),
        pixel_padding=v.unsigned_or_signed(0x00280120, "pixel_padding", signed=signed),
        has_modality_lut=0x00283000 in v,
        kernel=v.text(0x00181210, 64),
        kvp=v.number(0x00180060, "kvp"),
        contrast_agent=v.text(0x00180010, 64),
        contrast_route=v.text(0x00181040, 64),
        patient_id=v.text(0x00100020, 64),
        patient_name=v.text(0x00100010, 194),
        patient_birth_date=v.date(0x00100030),
        patient_sex=v.text(0x00100040, 16).upper(),
        patient_age=v.text(0x00101010, 4).upper(),
        patient_size_m=v.number(0x00101020, "patient_size"),
        patient_weight_kg=v.number(0x00101030, "patient_weight"),
        study_date=v.date(0x00080020),
        study_time=v.text(0x00080030, 16),
        study_id=v.text(0x00200010, 16),
        study_description=v.text(0x00081030, 64),
        accession_number=v.text(0x00080050, 16),
        referring_physician=v.text(0x00080090, 194),
        institution=v.text(0x00080080, 64),
        requested_priority=v.text(0x00401003, 16).upper(),
        image_comments=v.text(0x00204000, 1024),
        synthetic=manufacturer == SYNTHETIC_CREATOR
        or any(v.text(tag, 64) == SYNTHETIC_CREATOR for tag in v.within(_PRIVATE_CREATORS)),
        pixels=pixels,
        n_related_instances=v.integer(0x00201208, "n_related_instances"),
        malformed=tuple(dict.fromkeys(v.malformed)),
    )


def _plane(v: Values) -> FramePlane:
    return FramePlane(
        frame=0,
        ipp=v.position(0x00200032),
        iop=v.cosines(0x00200037),
        pixel_spacing=v.pair(0x00280030, "pixel_spacing"),
        slope=v.number(0x00281053, "rescale_slope"),
        intercept=v.number(0x00281052, "rescale_intercept"),
        phase=v.uint32(0x00209128, "phase"),
        time_offset_s=v.float64(0x0020930D, "time_offset"),
        trigger_time_ms=v.float64(0x00209153, "trigger_time"),
        cardiac_phase_percent=v.float32(0x00209241, "cardiac_phase"),
        rescale_type=v.text(0x00281054, 64).upper(),
    )


def _described_planes(v: Values) -> tuple[FramePlane, ...]:
    """Planes from shared and per-frame functional groups (PS3.3 section C.7.6.16)."""
    shared = v.first_item(0x52009229)
    planes: list[FramePlane] = []
    for frame, own in enumerate(v.items(0x52009230)):

        def group(tag: int, own: Values = own) -> Values:
            found = own.first_item(tag, depth=2) or (shared and shared.first_item(tag, depth=2))
            return found or _EMPTY

        position, orientation = group(0x00209113), group(0x00209116)
        measures, rescale, content = group(0x00289110), group(0x00289145), group(0x00209111)
        temporal, cardiac = group(0x00209310), group(0x00189118)
        echo, diffusion = group(0x00189114), group(0x00189117)
        kind = group(0x00189226) if group(0x00189226) is not _EMPTY else group(0x00189329)
        planes.append(
            FramePlane(
                frame=frame,
                ipp=position.position(0x00200032),
                iop=orientation.cosines(0x00200037),
                pixel_spacing=measures.pair(0x00280030, "pixel_spacing"),
                slope=rescale.number(0x00281053, "rescale_slope"),
                intercept=rescale.number(0x00281052, "rescale_intercept"),
                phase=content.uint32(0x00209128, "phase"),
                stack_id=content.text(0x00209056, 16),
                echo_time_ms=echo.float64(0x00189082, "echo_time"),
                b_value=diffusion.float64(0x00189087, "b_value"),
                frame_type=kind.words(0x00089007, 8, 32),
                acquisition_number=content.unsigned(0x00209156, "acquisition_number"),
                acquired_at=content.text(0x00189074, 26),
                time_offset_s=temporal.float64(0x0020930D, "time_offset"),
                trigger_time_ms=cardiac.float64(0x00209153, "trigger_time"),
                cardiac_phase_percent=cardiac.float32(0x00209241, "cardiac_phase"),
                rescale_type=rescale.text(0x00281054, 64).upper(),
            )
        )
        for part in (position, orientation, measures, rescale, content, temporal, cardiac, echo, diffusion):
            v.malformed.extend(part.malformed)
    return tuple(planes)


_EMPTY: Final = Values(Walk(b""), {})
