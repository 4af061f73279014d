"""The rules of the DICOM door in words: what holds, and what is a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heimdallr_ray.config import Settings, load
from heimdallr_ray.operations import doctor, doors
from tests.support.certificates import authority

OPEN = {"dicom_host": "0.0.0.0", "allowed_calling_aes": ("CT1", "CT2")}


def of(folder: Path, **values: Any) -> Settings:
    return load({}, data_dir=folder, **values)


def test_what_nobody_has_set_is_said_too(tmp_path: Path) -> None:
    settings = of(tmp_path)
    assert doors.summary(settings) == {
        "tls": "off; 127.0.0.1 is reached from this machine only",
        "called_ae": "HEIMDALLR",
        "calling_aes": "any (allowed_calling_aes is empty)",
        "addresses": "any (allowed_addresses is empty); the listener is bound to 127.0.0.1, so that none but this "
        "machine's get that far",
        "commitment": "nobody: every request for storage commitment is refused (commitment_peers is empty)",
        "durability": "instance: Success is answered when the image is on the disk",
    }
    assert {one.level for one in doctor.check_doors(settings)} == {"ok"}


def test_lists_are_named_and_long_ones_counted(tmp_path: Path) -> None:
    said = doors.summary(
        of(
            tmp_path,
            dicom_host="0.0.0.0",
            ae_title="  STORE ",
            allowed_calling_aes=tuple(f"CT{n}" for n in range(10)),
            allowed_addresses=("10.20.0.0/24",),
            commitment_peers=("CT1=10.20.0.17:104", "CT2=[::1]:105"),
        )
    )
    assert said["called_ae"] == "STORE"
    assert said["calling_aes"] == "CT0, CT1, CT2, CT3, CT4, CT5, CT6, CT7 and 2 more"
    assert said["addresses"] == "10.20.0.0/24"
    assert said["commitment"] == "reports go to CT1 at 10.20.0.17:104, CT2 at [::1]:105"


def test_what_may_cost_images_or_tell_names_is_a_note(tmp_path: Path) -> None:
    checks = {one.name: one for one in doctor.check_doors(of(tmp_path, durability="study", **OPEN))}
    assert {name for name, one in checks.items() if one.level == "note"} == {"DICOM TLS", "durability"}
    assert "a power cut can lose images that were acknowledged" in checks["durability"].detail
    assert checks["DICOM TLS"].detail.startswith("off: images and patients' names travel as plain text")
    assert "docs/operations/listener.md" in checks["DICOM TLS"].mend
    assert "power cut" in doors.summary(of(tmp_path, durability="study"))["durability"]


@pytest.mark.parametrize("broken", [False, True])
def test_the_files_of_tls_are_tried(tmp_path: Path, broken: bool) -> None:
    ours = authority(tmp_path)
    issued = ours.issue("listener")
    if broken:
        issued.key.write_text("no key")
    settings = of(
        tmp_path,
        dicom_tls="on",
        dicom_tls_certificate=issued.certificate,
        dicom_tls_key=issued.key,
        dicom_tls_ca=ours.certificate,
        commitment_peers=("PACS=tls:pacs.example.org:2762",),
        **OPEN,
    )
    (found,) = [one for one in doctor.check_doors(settings) if one.name == "DICOM TLS"]
    assert found.level == ("mend" if broken else "ok")
    assert ("dicom_tls_certificate or dicom_tls_key cannot be used" in found.detail) == broken
    assert doors.summary(settings)["commitment"] == "reports go to PACS at pacs.example.org:2762 with TLS"
