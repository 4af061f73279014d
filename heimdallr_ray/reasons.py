"""What every reason code means and what to do about it: one plain sentence or two each, for who reads the study.

A test collects the codes that the package uses and compares; `docs/measurements.md` and `/api/v1/reasons` show this
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Place(StrEnum):
    """Where a reader meets a code."""

    STUDY = "study"
    SERIES = "series"
    IMAGE = "image"
    TASK = "task"
    STATUS = "status"
    MEASUREMENT = "measurement"


@dataclass(frozen=True)
class Reason:
    """One code.

    Attributes:
        code: stable; letters of the code as they stand in results and API answers.
        sentence: for a radiologist: what it means, and what to do where something can be done.
        places: where the code appears.
    """

    code: str
    sentence: str
    places: frozenset[Place]


_STUDY, _SERIES, _IMAGE = Place.STUDY, Place.SERIES, Place.IMAGE
_TASK, _STATUS, _MEASUREMENT = Place.TASK, Place.STATUS, Place.MEASUREMENT
_SIDES = ("left", "right", "posterior", "anterior", "inferior", "superior")
_ADMIN = "Tell your administrator"


def _row(code: str, sentence: str, *places: Place) -> Reason:
    return Reason(code, sentence, frozenset(places))


_STUDY_ROWS = (
    _row(
        "no_usable_series",
        "No series of this study can be measured; the series table says why for each. Send a thin axial soft-tissue "
        "series if there is one.",
        _STUDY,
    ),
    _row(
        "modality_not_supported",
        "No model that reads this kind of image is installed here. Read the study without it.",
        _STUDY,
    ),
    _row(
        "not_a_volume",
        "The slices of the chosen series do not form an exact volume. Send the series again from the scanner or PACS.",
        _STUDY,
    ),
    _row(
        "idle_after_release",
        "The study was closed because nothing came any more after its sender had ended properly.",
        _STUDY,
    ),
    _row("idle", "The study was closed because nothing came any more; how its sender ended is not known.", _STUDY),
    _row(
        "idle_after_abort",
        "The study was closed although its last transfer was broken off: nothing came for a long while. Images may be "
        "missing; compare their number with the scanner or PACS.",
        _STUDY,
    ),
    _row("expected_count", "The study was closed because all images that were announced are here.", _STUDY),
    _row(
        "required_series", "The study was closed because every series that its source's rule asks for is here.", _STUDY
    ),
    _row(
        "hard_maximum",
        "Images went on coming for longer than a study may stay open, so it was cut off. Where it was not analysed, "
        "retry it once it is complete.",
        _STUDY,
    ),
    _row("operator", "A person said that the study is complete.", _STUDY),
    _row(
        "transfer_incomplete",
        "A person said that the study is complete, but its last transfer had not ended properly: it was broken off, "
        "lost or still open. Images may be missing; compare their number with the scanner or PACS.",
        _STUDY,
    ),
    _row(
        "sop_uid_conflict",
        "Images came under one SOP Instance UID with different bytes. All are kept, because nothing tells which is "
        "right: ask whoever sent them.",
        _STUDY,
    ),
    _row("sending", "A sender has an association open that has sent to this study.", _STUDY),
    _row(
        "upload_open",
        "An upload that sent to this study has not been ended by its client: it goes on, or was given up without a "
        "word and counts as broken off after a while.",
        _STUDY,
    ),
    _row(
        "late_images_unchanged",
        "Images came after the analysis and none of them belongs to what was measured, so the results stand.",
        _STUDY,
    ),
    _row("empty_image", "The images hold nothing to measure: all pixels are equal or zero.", _STUDY),
    _row(
        "truncated",
        "Images end before their pixels do: they were cut off on the way. Send the study again.",
        _STUDY,
        _SERIES,
    ),
    _row(
        "too_large",
        "The images are larger than this system accepts. Send a smaller reconstruction.",
        _STUDY,
        _SERIES,
    ),
    _row("not_dicom", "A stored file is not a DICOM image any more. Send the study again.", _STUDY),
    _row("bad_identifier", "An identifier in the images does not have the form that DICOM prescribes.", _STUDY),
    _row("not_found", f"Something that the analysis needs is not there. {_ADMIN}.", _STUDY),
    _row(
        "blob_missing",
        "A stored image is missing or damaged on this server. Send the study again and tell your administrator.",
        _STUDY,
    ),
    _row(
        "weights_missing",
        f"The model for this is not installed here. {_ADMIN} if it should be.",
        _STUDY,
        _TASK,
        _MEASUREMENT,
    ),
    _row(
        "over_memory_budget",
        f"The model for this needs more memory than this server gives its models, so it was not run. {_ADMIN}.",
        _STUDY,
        _TASK,
        _MEASUREMENT,
    ),
    _row(
        "model_unusable",
        f"The model for this is installed but damaged or not the right one, so it was not run. {_ADMIN}.",
        _TASK,
        _MEASUREMENT,
    ),
    _row(
        "weights_tampered",
        f"A model file is not the one that was checked, so it was not used. {_ADMIN}.",
        _STUDY,
    ),
    _row("licence_required", f"The model needs a licence that this site has not configured. {_ADMIN}.", _STUDY),
    _row(
        "geometry_mismatch",
        f"Segmentation and image do not lie on the same grid, so nothing was measured from them. {_ADMIN}.",
        _STUDY,
        _MEASUREMENT,
    ),
    _row(
        "oom",
        "The study did not fit into this server's memory. Send a series with fewer or thicker slices, or tell your "
        "administrator.",
        _STUDY,
    ),
    _row(
        "device_lost",
        "The accelerator stopped working for the segmentation program, which starts anew by itself. Try again in a few "
        "minutes; if it stays so, tell your administrator.",
        _STUDY,
    ),
    _row(
        "out_of_time",
        "The segmentation took longer than this server allows for one study, so it was ended and nothing was made from "
        "it. Send a series with fewer or thicker slices, or tell your administrator.",
        _STUDY,
        _TASK,
        _MEASUREMENT,
    ),
    _row(
        "engine_unavailable",
        "The segmentation service did not answer. Try again in a few minutes; if it stays so, tell your administrator.",
        _STUDY,
    ),
    _row(
        "engine_killed",
        "The segmentation program broke down twice while it worked on this study, so the study was set aside and "
        f"nothing was measured. Read the study without it. {_ADMIN}, who can try again once the cause is gone.",
        _STUDY,
    ),
    _row(
        "decoder_unavailable",
        "Images could not be decoded or converted because no process for it could be started. Try again in a few "
        "minutes; if it stays so, tell your administrator.",
        _STUDY,
    ),
    _row("storage_full", f"The server's disk is full. {_ADMIN}, then try again.", _STUDY),
    _row("storage_failed", f"The server could not write to its disk. {_ADMIN}, then try again.", _STUDY),
    _row("database_busy", "The database did not answer in time. Try again in a few minutes.", _STUDY),
    _row("database_unusable", f"The database cannot be used as it is. {_ADMIN}.", _STUDY),
    _row("schema_mismatch", f"The database belongs to another version of this software. {_ADMIN}.", _STUDY),
    _row("not_ready", "A part of the system was not ready in time. Try again in a few minutes.", _STUDY),
    _row(
        "attempts_exhausted",
        "The analysis failed several times in a row. Try again later; if it fails again, tell your administrator.",
        _STUDY,
    ),
    _row(
        "worker_lost_repeatedly",
        f"The program stopped again and again while it worked on this study, which may be the cause itself. {_ADMIN}.",
        _STUDY,
    ),
    _row("illegal_transition", "The study was changed by two parts of the system at once. Try again.", _STUDY),
    _row("broken", f"The analysis stopped at a defect of this software. {_ADMIN}; read the study without it.", _STUDY),
)

_SERIES_ROWS = (
    _row("outranked", "It could be measured, but another series of this study is better suited.", _SERIES),
    _row("other_chosen", "Not measured, because a person chose another series of this study.", _SERIES),
    _row("wrong_modality", "Another kind of image than the one that is measured for this purpose.", _SERIES),
    _row("localizer", "A planning image (localizer, scout), not a volume.", _SERIES),
    _row(
        "not_volume_sop", "Not CT or MR slices: a report, a dose record, a capture or another kind of object.", _SERIES
    ),
    _row("colour", "A colour picture, not measured values.", _SERIES),
    _row(
        "mosaic",
        "Several slices are tiled into one image, and it could not be proven where each lies. Send them singly.",
        _SERIES,
    ),
    _row(
        "multiframe_without_groups",
        "The frames do not say where they lie in the patient. Send the original slices.",
        _SERIES,
    ),
    _row(
        "not_hounsfield",
        "The values are a computed map (iodine, effective atomic number, a fraction or the like), not Hounsfield "
        "units. Send the conventional reconstruction.",
        _SERIES,
    ),
    _row(
        "projection",
        "Derived pixels (MIP, average, subtraction and the like), not the original values. Send the original slices.",
        _SERIES,
    ),
    _row("too_few_slices", "Too few slices for a volume.", _SERIES),
    _row(
        "too_thick",
        "The slices are too thick, or too far apart, to measure. Send a thinner reconstruction if there is one.",
        _SERIES,
    ),
    _row(
        "sharp_kernel",
        "A bone or lung kernel, whose noise spoils soft tissue values. Send a soft-tissue reconstruction.",
        _SERIES,
    ),
    _row("no_geometry", "Position, orientation or pixel spacing is missing or cannot be read.", _SERIES),
    _row("bad_geometry", "The slice positions are not those of a stack of images of a person.", _SERIES),
    _row(
        "bad_orientation", "The image orientation is not valid: its two directions do not form a right angle.", _SERIES
    ),
    _row("bad_spacing", "The pixel spacing is not one that an image of a person can have.", _SERIES),
    _row("single_slice", "Only one slice position, which is not a volume.", _SERIES),
    _row(
        "four_d",
        "Every position was imaged several times (a time series), and the phases cannot be told apart.",
        _SERIES,
    ),
    _row(
        "incomplete_4d",
        "Many positions were imaged more than once, but not all: an incomplete time series. Send it again.",
        _SERIES,
    ),
    _row(
        "variable_spacing",
        "The distance between slices varies, so no volume can be counted. Send an evenly spaced reconstruction.",
        _SERIES,
        _IMAGE,
        _MEASUREMENT,
    ),
    _row(
        "missing_slices",
        "Slices are missing inside the series; volumes are not counted across a gap. Send the complete series again.",
        _SERIES,
        _IMAGE,
        _MEASUREMENT,
    ),
    _row("not_collinear", "The slices do not lie one behind the other on a straight line.", _SERIES),
    _row("not_parallel", "The slices differ in orientation or pixel spacing.", _SERIES),
    _row("mixed_sizes", "The slices differ in their number of rows or columns.", _SERIES),
    _row(
        "conflicting_duplicates",
        "Two different images claim the same place. Send the series again from the scanner or PACS.",
        _SERIES,
    ),
    _row("bad_rescale", "The values that turn pixels into Hounsfield units are missing, damaged or absurd.", _SERIES),
    _row("modality_lut", "Its values need a lookup table that is not applied here.", _SERIES),
    _row("no_pixels", "The objects hold no image.", _SERIES),
    _row("unsupported_pixels", "The pixels are stored in a form that cannot be read here.", _SERIES),
    _row("unsupported_syntax", "The compression of these images cannot be read here. Send them uncompressed.", _SERIES),
    _row("undecodable_pixels", "The compressed pixels are damaged. Send the series again.", _SERIES),
    _row(
        "converter_disagrees",
        "The images had to be converted by another program, which places the slices elsewhere than the images say.",
        _SERIES,
    ),
    _row("bad_affine", "The position and direction of the volume cannot be computed.", _SERIES),
    _row("not_3d", "The image does not have three dimensions.", _SERIES),
    _row("not_finite", "The image holds values that are no numbers.", _SERIES),
    _row("too_small", "The image has too few pixels along a side for any model to see something in it.", _SERIES),
    _row("unknown_label", "The segmentation holds values that name no structure, so it is not used.", _SERIES),
    _row("dtype", "The pixel values have a form that cannot be measured.", _SERIES),
)

_IMAGE_ROWS = (
    _row("tilt", "The gantry was tilted. Positions and volumes take the tilt into account.", _IMAGE),
    _row(
        "region_not_measured",
        "Another series of this study shows a part of the body that lies outside the measured one. Nothing was looked "
        "for there; choose that series to measure it, or read it without.",
        _IMAGE,
    ),
    _row("deskewed", "The tilt of the gantry was taken out of the images before they were analysed.", _IMAGE),
    _row(
        "dcm2niix",
        "The images were converted by the program dcm2niix; its geometry agrees with what the images say.",
        _IMAGE,
    ),
    _row("time_points", "The same anatomy was imaged several times in a row; the first of these was taken.", _IMAGE),
    _row("uneven_spacing", "The distance between slices varies a little, within what is tolerated.", _IMAGE),
    _row("duplicate_slices", "Slices were sent twice with equal pixels; each counts once.", _IMAGE),
    _row("monochrome1", "The images are stored for inverted display; their values are used as they are.", _IMAGE),
    _row("per_slice_rescale", "Slices have different rescale values; each was converted with its own.", _IMAGE),
    _row("no_rescale", "The images have no rescale values; the stored numbers were used as they are.", _IMAGE),
)

_TASK_ROWS = (
    _row(
        "anatomy_absent",
        "Not run, because the model did not find enough of the part of the body that it is for: it is not in the "
        "image, or was missed. Look yourself.",
        _TASK,
        _MEASUREMENT,
    ),
    _row(
        "licence",
        f"Not run, because this site has no licence for the model. {_ADMIN} if there should be one.",
        _TASK,
        _MEASUREMENT,
    ),
    _row(
        "failed",
        f"The segmentation did not end well, so its labels are missing; no number is made from them. {_ADMIN}.",
        _TASK,
        _MEASUREMENT,
    ),
    _row("modality", "Not run, because the model reads another kind of image.", _TASK, _MEASUREMENT),
    _row(
        "vertebrae_joined",
        "The vertebrae were segmented as one lump, so it is not known which is which, and none is shown.",
        _STUDY,
        _TASK,
        _MEASUREMENT,
    ),
)

_STATUS_ROWS = (
    _row("ok", "The structure was measured.", _STATUS),
    _row("not_applicable", "The question does not arise for this image, or the model for it was not run.", _STATUS),
    _row("gated", "Held back: the images do not allow a number that could be trusted.", _STATUS),
    _row("incomplete_fov", "The structure is cut by the edge of the scan, so its full size is not known.", _STATUS),
    _row(
        "label_absent",
        "The model did not find the structure: it is not in the image, or was missed. That is not a negative finding.",
        _STATUS,
        _MEASUREMENT,
    ),
    _row("level_uncertain", "The vertebral level could not be settled.", _STATUS),
    _row(
        "insufficient_roi",
        "Too little of the structure is left for a number.",
        _STATUS,
        _MEASUREMENT,
    ),
    _row(
        "implausible",
        "The number lies outside what is plausible. Look at the overlay before you use it.",
        _STATUS,
        _MEASUREMENT,
    ),
    _row("error", f"The measurement stopped at a defect of this software. {_ADMIN}.", _STATUS),
)

_MEASUREMENT_ROWS = (
    *(
        _row(
            f"border_{side}",
            f"The structure reaches the {side} edge of the scan: a part of it may be missing.",
            _MEASUREMENT,
        )
        for side in _SIDES
    ),
    *(
        _row(
            f"brain_border_{side}",
            f"The brain reaches the {side} edge of the scan: a part of it was not looked at."
            if side != "inferior"
            else "The brain reaches the inferior edge of the scan, as on every head scan.",
            _MEASUREMENT,
        )
        for side in _SIDES
    ),
    _row("below_minimum_volume", "What was found is too small to be the structure.", _MEASUREMENT),
    _row(
        "brain_not_in_field",
        "The model found no brain: it is not in the image, or was missed. That is not a negative finding.",
        _MEASUREMENT,
    ),
    _row(
        "brain_not_verified",
        "Whether the whole brain is in the image could not be checked. Look yourself.",
        _MEASUREMENT,
    ),
    _row(
        "negative_not_excluded",
        "No blood was found. The model knows blood inside the brain only: subdural, epidural and subarachnoid bleeds "
        "are not covered, and nothing is excluded.",
        _MEASUREMENT,
    ),
    _row(
        "outside_blood_range",
        "A part of what was marked is not as dense as acute blood (40 to 90 HU). Look at the overlay.",
        _MEASUREMENT,
    ),
    _row("fragmented", "The segmentation of the structure is in several pieces. Look at the overlay.", _MEASUREMENT),
    _row(
        "level_unverified",
        "The neighbours of L3 are not wholly in the image, so the level was not checked.",
        _MEASUREMENT,
    ),
    _row(
        "vertebrae_out_of_order",
        "The lumbar vertebrae were found in a wrong order, so the level is not known.",
        _MEASUREMENT,
    ),
    _row(
        "vertebrae_unevenly_spaced",
        "The lumbar vertebrae were found at uneven distances, so the level is not certain.",
        _MEASUREMENT,
    ),
    _row("vertebral_body_not_found", "The body of L3 could not be found inside its segmentation.", _MEASUREMENT),
    _row("oblique_slices", "The slices lie too oblique for an area at one vertebral level.", _MEASUREMENT),
    _row("metal", "Metal in the sample may have changed the attenuation. Look at the images.", _MEASUREMENT),
    _row(
        "orientation_suspect",
        "Paired organs lie on unexpected sides: mirrored images, mixed-up labels or situs inversus. Check the sides.",
        _MEASUREMENT,
    ),
    _row(
        "resolution_too_low",
        "The structures were segmented at a coarser resolution than this number needs, so no number is given. With "
        "today's measurements and models that cannot happen: 3 mm is enough for each, and none is coarser.",
        _MEASUREMENT,
    ),
    _row(
        "spacing_too_coarse",
        "The slices are too far apart to count a volume. Send a thinner reconstruction if there is one.",
        _MEASUREMENT,
    ),
    _row("not_ct", "This is measured on CT only.", _MEASUREMENT),
    _row("task_not_run", "The segmentation that this is measured from was not run.", _MEASUREMENT),
    _row("measurement_failed", f"The measurement stopped at a defect of this software. {_ADMIN}.", _MEASUREMENT),
)

REASONS: tuple[Reason, ...] = (
    *_STUDY_ROWS,
    *_SERIES_ROWS,
    *_IMAGE_ROWS,
    *_TASK_ROWS,
    *_STATUS_ROWS,
    *_MEASUREMENT_ROWS,
)
SENTENCES: Mapping[str, str] = MappingProxyType({reason.code: reason.sentence for reason in REASONS})
"""Code to sentence."""
