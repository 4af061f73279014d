from __future__ import annotations

import pytest

from heimdallr_ray.config import Settings
from tools import conformance_page

TEXT = conformance_page.OUTPUT.read_text(encoding="utf-8")


def test_the_tables_are_what_the_package_does() -> None:
    assert conformance_page.page(TEXT) == TEXT, "run `make docs`"


def test_every_table_has_its_place_and_no_other_has() -> None:
    assert {name for name in conformance_page.TABLES if conformance_page.table_of(TEXT, name)} == set(
        conformance_page.TABLES
    )
    assert TEXT.count("written by `make docs` -->") == len(conformance_page.TABLES)
    with pytest.raises(ValueError, match="services"):
        conformance_page.page("# Nothing")


def test_check_tells_a_page_that_is_behind(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert conformance_page.main(["--check"]) == 0
    monkeypatch.setitem(conformance_page.TABLES, "tls", lambda: "| other |")
    assert conformance_page.main(["--check"]) == 1
    assert "make docs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        *("ae_title", "dicom_port", "dicom_host", "commitment_peers", "commitment_days", "allowed_calling_aes"),
        *("allowed_addresses", "max_associations", "max_instance_mib", "durability", "dicom_tls", "dicom_tls_ca"),
    ],
)
def test_settings_that_the_page_names_exist(name: str) -> None:
    assert f"`{name}" in TEXT and name in Settings.model_fields


def test_every_sop_class_and_transfer_syntax_has_its_name() -> None:
    for table in ("storage", "syntaxes"):
        assert [row for row in conformance_page.table_of(TEXT, table) if row[0].startswith("1.2.")] == []
    assert "| Label Map Segmentation Storage | `1.2.840.10008.5.1.4.1.1.66.7` |" in TEXT
