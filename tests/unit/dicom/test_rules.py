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
        ('rescale_types = "ct_units"', "rescale_types = []", "a CT needs those that mean Hounsfield units"),
        (
            'rescale_types = "ct_units"',
            'rescale_types = "units"',
            "ct_volume.rescale_types: no list units in the table",
        ),
        ('known_types = "ct_known"', 'known_types = "known"', "ct_volume.penalties.known_types: no list known in the"),
        ('rescale_types = "ct_units"', "rescale_types = 5", "profiles.ct_volume.rescale_types"),
        ('ct_units = ["HU"', 'ct_units = [5, "HU"', "shared.ct_units"),
        ("[shared]", "[shared]\nunits = 5", "shared.units"),
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


def test_a_profile_names_a_shared_list_or_has_its_own() -> None:
    ours = default_rules().file
    for profile in (ours.profiles["ct_volume"], ours.profiles["ct_lung"], ours.profiles["ct_bone"]):
        assert profile.map_types == ours.shared["ct_maps"]
        assert profile.penalties.known_types == ours.shared["ct_known"]
    own = parse_rules(changed('map_types = "ct_maps"', 'map_types = ["VNC"]'), "x").file
    assert own.profiles["ct_volume"].map_types == ("VNC",)
    assert own.profiles["ct_lung"].map_types == ours.shared["ct_maps"]


def test_units_are_asked_of_ct_only() -> None:
    refused = {name: "not_hounsfield" in one.refuse for name, one in default_rules().file.profiles.items()}
    assert refused == {"ct_volume": True, "ct_lung": True, "ct_bone": True, "mr_volume": False}


def test_every_shared_list_is_used() -> None:
    text = OURS.decode()
    assert all(text.count(f'= "{name}"') > 1 for name in default_rules().file.shared)


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
