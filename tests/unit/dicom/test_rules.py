"""The rule file is data that is checked as a whole; what is wrong in it is named."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from heimdallr_ray.dicom.ranking import RANKERS
from heimdallr_ray.dicom.rules import MAX_FILE_BYTES, RANKS, REFUSALS, default_rules, load_rules, parse_rules
from heimdallr_ray.dicom.suitability import RULES
from heimdallr_ray.errors import BadSetting

OURS = (resources.files("heimdallr_ray.dicom") / "series_rules.toml").read_bytes()


def changed(old: str, new: str) -> bytes:
    text = OURS.decode()
    assert old in text
    return text.replace(old, new, 1).encode()


def test_the_packages_own_file_is_valid_and_known_by_its_digest() -> None:
    rules = default_rules()
    ref = rules.ref("volume")
    assert (ref.rules_id, ref.version, ref.purpose) == ("heimdallr-series", 3, "volume")
    assert len(ref.sha256) == 64
    assert parse_rules(OURS + b"\n", "x").sha256 != ref.sha256
    assert [one.modality for one in rules.profiles("volume")] == ["CT", "MR"]


def test_every_name_of_the_table_has_an_evaluator() -> None:
    assert tuple(RULES) == REFUSALS
    assert tuple(RANKERS) == RANKS


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('rules_id = "heimdallr-series"', 'rules_id = "Not an id"', "rules_id"),
        ("version = 3", "version = 0", "version"),
        ("version = 3", "version = 3\nedition = 2", "edition"),
        ('"not_volume_sop", "wrong_modality", ', '"not_volume_sop", ', "wrong_modality cannot be left out"),
        ('"truncated", "too_few', '"truncated", "too_good", "too_few', "too_good"),
        ('order = [\n  "penalty", "coverage"', 'order = [\n  "penalty", "luck"', "luck"),
        ('order = [\n  "penalty"', 'order = [\n  "penalty", "penalty"', "a name twice"),
        ('volume = ["ct_volume", "mr_volume"]', 'volume = ["ct_volume", "nowhere"]', "no profile nowhere"),
        ('volume = ["ct_volume", "mr_volume"]', 'volume = ["ct_volume", "ct_lung"]', "two profiles for one modality"),
        ('volume = ["ct_volume", "mr_volume"]', "", "`volume` is missing"),
        ("min_slices = 10", "min_slices = 1", "min_slices"),
        ("min_slices = 10", 'min_slices = "ten"', "min_slices"),
        ("coverage_share = 0.92", "coverage_share = nan", "coverage_share"),
        ("ideal_thickness_mm = [1.0, 2.0]", "ideal_thickness_mm = [2.0, 1.0]", "lower bound"),
        ("kernel_rank = { soft = 0, ", "kernel_rank = { ", "kernel_rank"),
        ('phases = ["native", ', 'phases = ["native", "late", ', "phases"),
        ("numbered = [{ to = 45", "numbered = [{ to = 60", "must ascend"),
        (
            'rescale_types = ["HU", "US", "UNSPECIFIED", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS"]',
            "rescale_types = []",
            "a CT needs those that mean Hounsfield units",
        ),
        ('_without_groups", "not_hounsfield", ', '_without_groups", ', "not_hounsfield cannot be left out"),
        ('alone = ["without"', 'alone = ["never"', "name words of contrast.negations"),
        ("[contrast.words]", '[contrast.words]\nunknown = ["?"]', "unknown"),
        ("[purposes]", "[purposes", "Expected"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(old: str, new: str, named: str) -> None:
    with pytest.raises(BadSetting, match=r"series rules site\.toml: ") as raised:
        parse_rules(changed(old, new), "site.toml")
    assert named in raised.value.detail


def test_a_site_gives_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(changed('rules_id = "heimdallr-series"', 'rules_id = "ward-7"'))
    assert load_rules(path).file.rules_id == "ward-7"
    assert load_rules(None) is default_rules()


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"#" * (MAX_FILE_BYTES + 1), b""])
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "site.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadSetting, match=r"series rules site\.toml"):
        load_rules(path)


def test_a_purpose_that_a_file_does_not_know_is_refused() -> None:
    with pytest.raises(BadSetting, match="no purpose bone"):
        parse_rules(changed('bone = ["ct_bone"]', ""), "x").profiles("bone")
