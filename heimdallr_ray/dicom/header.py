"""What one DICOM object says about itself, parsed once and trusted afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from heimdallr_ray.ids import Uid

SYNTHETIC_CREATOR: Final = "HEIMDALLR SYNTHETIC"
"""Private creator and manufacturer of objects that the package itself made from phantoms."""

Triple = tuple[float, float, float]
Cosines = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class PixelLocation:
    """Where Pixel Data (7FE0,0010) lies inside the object, in bytes of the object as received.

    For a deflated object the offsets count inflated bytes behind the file meta information.
    """

    tag_offset: int
    offset: int
    length: int | None
    """None: encapsulated (undefined length)."""
    bulk: bool = True
    """False: Float or Double Float Pixel Data, which no CT or MR image carries."""


@dataclass(frozen=True, slots=True)
class FramePlane:
    """Plane and rescale of one frame, in LPS millimetres; None where the object does not say."""

    frame: int
    ipp: Triple | None
    iop: Cosines | None
    pixel_spacing: tuple[float, float] | None
    """Between rows, between columns (PS3.3 section 10.7.1.3)."""
    slope: float | None
    intercept: float | None
    phase: int | None = None
    """Temporal Position Index (0020,9128)."""
    stack_id: str = ""
    echo_time_ms: float | None = None
    b_value: float | None = None
    frame_type: tuple[str, ...] = ()
    """Frame Type (0008,9007) of a described frame."""
    acquisition_number: int | None = None
    acquired_at: str = ""
    """Frame Acquisition DateTime (0018,9074)."""
    time_offset_s: float | None = None
    """Temporal Position Time Offset (0020,930D)."""
    trigger_time_ms: float | None = None
    """Nominal Cardiac Trigger Delay Time (0020,9153)."""
    cardiac_phase_percent: float | None = None
    """Nominal Percentage of Cardiac Phase (0020,9241)."""
    rescale_type: str = ""
    """Rescale Type (0028,1054), upper case: what the rescaled values are, by PS3.3 section C.11.1.1.2."""


@dataclass(frozen=True, slots=True)
class Header:
    """The facts of one instance that the package uses.

    Text is decoded, bounded to its VR and free of control characters; "" where absent. Numbers are finite or None.
    A field that is present but unreadable is None and named in `malformed`.
    """

    transfer_syntax_uid: str
    sop_class_uid: Uid | None
    sop_uid: Uid | None
    study_uid: Uid | None
    series_uid: Uid | None
    frame_of_reference_uid: Uid | None
    concatenation_uid: Uid | None
    """Shared by multi-frame objects that are pieces of one (PS3.3 section C.7.6.16.2.2.4)."""
    modality: str
    image_type: tuple[str, ...]
    manufacturer: str
    series_number: int | None
    series_description: str
    protocol_name: str
    body_part: str
    instance_number: int | None
    acquisition_number: int | None
    acquisition_date: str
    acquisition_time: str
    content_time: str
    temporal_position: int | None
    trigger_time_ms: float | None
    echo_time_ms: float | None
    b_value: float | None
    rows: int | None
    columns: int | None
    samples_per_pixel: int
    photometric: str
    planar_configuration: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    number_of_frames: int
    frames_are_described: bool
    """True where per-frame functional groups give each frame its plane (PS3.3 section C.7.6.16)."""
    planes: tuple[FramePlane, ...]
    """One per frame of a described multi-frame object, one for a single-frame object, none otherwise."""
    slice_thickness_mm: float | None
    spacing_between_slices_mm: float | None
    gantry_tilt_deg: float | None
    pixel_padding: int | None
    has_modality_lut: bool
    kernel: str
    kvp: float | None
    contrast_agent: str
    contrast_route: str
    """Contrast/Bolus Route (0018,1040)."""
    patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str
    patient_age: str
    patient_size_m: float | None
    patient_weight_kg: float | None
    study_date: str
    study_time: str
    study_id: str
    study_description: str
    accession_number: str
    referring_physician: str
    institution: str
    requested_priority: str
    """Requested Procedure Priority (0040,1003), upper case: STAT, HIGH, ROUTINE, ..."""
    image_comments: str
    synthetic: bool
    """True where the object carries the package's own marker of synthetic images."""
    pixels: PixelLocation | None
    malformed: tuple[str, ...]
    n_related_instances: int | None = None
    """Number of Study Related Instances (0020,1208): how many images its sender says that the study has."""

    @property
    def plane(self) -> FramePlane | None:
        """The plane of a single-frame object."""
        return self.planes[0] if self.planes and not self.frames_are_described else None

    @property
    def ipp(self) -> Triple | None:
        """Image Position (Patient) of a single-frame object, LPS mm."""
        return self.plane.ipp if self.plane else None

    @property
    def iop(self) -> Cosines | None:
        """Image Orientation (Patient) of a single-frame object: row and column direction cosines."""
        return self.plane.iop if self.plane else None

    @property
    def pixel_spacing(self) -> tuple[float, float] | None:
        """Pixel Spacing of a single-frame object, mm between rows and between columns."""
        return self.plane.pixel_spacing if self.plane else None

    @property
    def rescale_slope(self) -> float | None:
        """Rescale Slope of a single-frame object."""
        return self.plane.slope if self.plane else None

    @property
    def rescale_intercept(self) -> float | None:
        """Rescale Intercept of a single-frame object."""
        return self.plane.intercept if self.plane else None

    @property
    def rescale_types(self) -> tuple[str, ...]:
        """What the rescaled values of the frames are, each once; frames that do not say are left out."""
        return tuple(sorted({plane.rescale_type for plane in self.planes if plane.rescale_type}))

    @property
    def native_pixel_bytes(self) -> int:
        """Bytes that the pixels take undecoded by the image attributes alone."""
        return (
            (self.rows or 0)
            * (self.columns or 0)
            * self.samples_per_pixel
            * self.number_of_frames
            * (-(-self.bits_allocated // 8))
        )

    @property
    def patient_age_years(self) -> float | None:
        """Age at the study: Patient's Age (0010,1010), else from birth and study date; None where unknown."""
        age, unit = self.patient_age[:3], self.patient_age[3:4]
        if age.isdecimal() and age.isascii() and unit in ("Y", "M", "W", "D"):
            return int(age) / {"Y": 1.0, "M": 12.0, "W": 52.1775, "D": 365.2425}[unit]
        if not self.patient_birth_date or not self.study_date:
            return None
        born, seen = self.patient_birth_date, self.study_date
        years = int(seen[:4]) - int(born[:4]) - (seen[4:] < born[4:])
        return float(years) if 0 <= years < 150 else None
