"""The two studies of `heimdallr demo`, as DICOM files with known truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple

from heimdallr_ray.dicom.synthetic import write_ct_series, write_localizer
from heimdallr_ray.ids import Uid
from heimdallr_ray.segmentation.demo import phantom

CHEST_ABDOMEN_SEED = 90_001
HEAD_BLEED_SEED = 90_002
"""Outside the ranges that the demo weights were trained and evaluated on."""


class Patient(NamedTuple):
    """Who the phantom pretends to be."""

    id: str
    name: str
    sex: str
    born: date


@dataclass(frozen=True)
class DemoStudy:
    """One synthetic study on disk."""

    label: str
    study_uid: Uid
    folder: Path
    n_files: int
    truth: Mapping[str, float]
    """Measurement id to the value painted into the phantom, in the measurement's unit."""


ORGANS = ("liver", "spleen", "kidney_right", "kidney_left")


def _truth(body: phantom.Phantom) -> dict[str, float]:
    """What was painted, for structures that are in the field of view."""
    known: dict[str, float] = {}
    for organ in ORGANS:
        if body.truth.volumes_ml.get(organ, 0.0) > 0.0:
            known[f"{organ}_volume"] = float(body.truth.volumes_ml[organ])
            known[f"{organ}_attenuation"] = float(body.truth.hu[organ])
    if body.truth.volumes_ml.get("brain", 0.0) > 0.0:
        known["intracranial_hemorrhage_volume"] = float(body.truth.bleed_ml)
    return known


def write_demo_study(label: str, root: Path, now: datetime, run_id: str) -> DemoStudy:
    """Write the study `label` (`chest-abdomen` or `head-bleed`) below `root`; UIDs differ from run to run."""
    if label == "chest-abdomen":
        body, description, part = phantom.chest_abdomen(CHEST_ABDOMEN_SEED), "CT CHEST ABDOMEN", "CHESTABDOMEN"
        patient = Patient("DEMO-001", "Phantom^Torso", "M", date(1960, 1, 1))
    else:
        body, description, part = phantom.head_bleed(HEAD_BLEED_SEED), "CT HEAD", "HEAD"
        patient = Patient("DEMO-002", "Phantom^Head", "F", date(1948, 6, 15))
    study_uid = Uid.derived("demo", label, run_id)
    folder = root / label
    folder.mkdir(parents=True)
    localizer = write_localizer(
        body.hu,
        body.affine_ras,
        study_uid=study_uid,
        series_uid=Uid.derived("demo", label, run_id, "localizer"),
        study_datetime=now,
        study_description=description,
        patient_id=patient.id,
        patient_name=patient.name,
        sex=patient.sex,
        birth_date=patient.born,
    )
    slices = write_ct_series(
        body.hu,
        body.affine_ras,
        study_uid=study_uid,
        series_uid=Uid.derived("demo", label, run_id, "slices"),
        study_datetime=now,
        study_description=description,
        series_description=f"{description} AXIAL",
        patient_id=patient.id,
        patient_name=patient.name,
        sex=patient.sex,
        birth_date=patient.born,
        body_part=part,
    )
    count = 0
    for prefix, series in (("localizer", localizer), ("slices", slices)):
        for name, content in series:
            (folder / f"{prefix}-{name}").write_bytes(content)
            count += 1
    return DemoStudy(label, study_uid, folder, count, _truth(body))
