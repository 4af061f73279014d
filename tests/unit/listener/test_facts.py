"""Identity of objects whose sender left identifiers blank."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydicom.uid import UID

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener.arrival import STAND_IN_SOP_UID, Arrival
from heimdallr_ray.listener.facts import Identity, identify_instance
from tests.support.intake import ct_slice, file_bytes

DIGEST = Sha256("ab" * 32)


def identify(intake: str = "a1", digest: Sha256 = DIGEST, affected: str = "", **attributes: object) -> Identity:
    dataset = ct_slice(1, "", "")
    dataset.SOPInstanceUID = ""
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(STAND_IN_SOP_UID)
    arrival = Arrival(intake, Door.DICOM, datetime(2026, 1, 1, tzinfo=UTC), "1.2.840.10008.1.2.1", "1.2", affected)
    return identify_instance(read_header(file_bytes(dataset)), arrival, digest)


def test_valid_identifiers_stand() -> None:
    found = identify(StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4", SOPInstanceUID="1.2.5", affected="9.9")
    assert (found.study_uid, found.series_uid, found.sop_uid) == ("1.2.3", "1.2.4", "1.2.5")
    assert not found.study_uid_generated


def test_a_blank_study_belongs_to_its_association_and_patient() -> None:
    assert identify().study_uid == identify(InstanceNumber=7).study_uid
    assert identify().study_uid != identify("a2").study_uid
    assert identify().study_uid != identify(PatientID="other").study_uid
    assert identify().study_uid_generated


def test_a_blank_series_depends_on_study_and_attributes() -> None:
    assert identify().series_uid == identify(InstanceNumber=7).series_uid
    assert identify().series_uid != identify(SeriesNumber=4).series_uid
    assert identify().series_uid != identify(SeriesDescription="bone").series_uid


def test_a_blank_instance_takes_the_affected_uid_then_the_bytes() -> None:
    assert identify(affected="1.2.9").sop_uid == "1.2.9"
    assert identify().sop_uid == identify("a2").sop_uid
    assert identify().sop_uid != identify(digest=Sha256("cd" * 32)).sop_uid
    # What our own spool wrote into the file meta is never taken for the sender's.
    assert identify().sop_uid != STAND_IN_SOP_UID


def test_malformed_identifiers_count_as_blank() -> None:
    for hostile in ("../../etc/x", "1.2.a", "1" * 65, "$(id)"):
        found = identify(affected=hostile)
        assert found.sop_uid == identify().sop_uid
        assert found.sop_uid.strict


@pytest.mark.parametrize(("sent", "told"), [("300", 300), ("0", None), ("-3", None), ("99999999999", None), ("", None)])
def test_the_number_of_images_that_a_header_announces_is_a_count_or_nothing(sent: str, told: int | None) -> None:
    dataset = ct_slice(1, "1.2", "1.3")
    dataset.add_new(0x00201208, "LO", sent)  # IS would not let the wrong ones be written
    arrival = Arrival("a1", Door.DICOM, datetime(2026, 1, 1, tzinfo=UTC), "1.2.840.10008.1.2.1")
    assert identify_instance(read_header(file_bytes(dataset)), arrival, DIGEST).study.n_expected == told
