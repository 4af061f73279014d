"""Which rule a sender falls under, and what a site may write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heimdallr_ray.config import Settings, load, load_effective, save_effective
from heimdallr_ray.errors import BadSetting
from heimdallr_ray.sources import RequiredSeries

TABLES = """
settle_after_release_seconds = 20

[[sources]]
name = "MR"
calling_aes = ["MR1", "MR2"]
addresses = ["10.1.0.0/16", "fd00::/8"]
idle_seconds = 900
settle_after_release_seconds = 300
max_open_seconds = 3600
at_max_open = "fail"
expected_instances = 12
required_series = [{ description = "*T1*", modality = "MR", min_images = 20 }, { description = "loc*" }]

[[sources]]
name = "by hand"
doors = ["upload", "stow"]
settle_after_release_seconds = 2
"""


def of(text: str, tmp_path: Path) -> Settings:
    file = tmp_path / "heimdallr.toml"
    file.write_text(text)
    return load({}, file)


def test_the_site_waits_short_after_a_release_and_long_after_an_abort() -> None:
    rules = load({}).completion.of("ANY", "10.0.0.1", "dicom")
    assert (rules.after_release_s, rules.idle_s, rules.after_abort_s) == (15, 60, 300)
    assert (rules.max_open_s, rules.at_max_open, rules.source) == (7200, "close", "")


@pytest.mark.parametrize(("idle", "release", "abort"), [(2, 2, 300), (10, 10, 300), (60, 15, 300), (900, 15, 900)])
def test_a_release_never_waits_longer_than_idle_and_an_abort_never_shorter(
    idle: float, release: float, abort: float
) -> None:
    rules = load({}, idle_seconds=idle).completion.of(None, None, None)
    assert (rules.after_release_s, rules.idle_s, rules.after_abort_s) == (release, idle, abort)


@pytest.mark.parametrize(
    ("ae", "address", "door", "name"),
    [
        ("MR1", "10.1.2.3", "dicom", "MR"),
        (" MR2 ", "::ffff:10.1.2.3", "dicom", "MR"),
        ("MR1", "fd00::7", "dicom", "MR"),
        ("MR1", "10.2.2.3", "dicom", ""),
        ("MR3", "10.1.2.3", "dicom", ""),
        ("MR1", None, "dicom", ""),
        ("MR1", "no address", "dicom", ""),
        (None, "10.9.9.9", "upload", "by hand"),
        ("MR1", "10.1.2.3", "upload", "MR"),
        (None, None, None, ""),
    ],
)
def test_the_first_rule_of_which_everything_fits_counts(
    tmp_path: Path, ae: str | None, address: str | None, door: str | None, name: str
) -> None:
    assert of(TABLES, tmp_path).completion.of(ae, address, door).source == name


def test_what_a_rule_leaves_out_is_as_for_everybody(tmp_path: Path) -> None:
    policy = of(TABLES, tmp_path).completion
    mr, hand = policy.of("MR1", "10.1.0.1", "dicom"), policy.of(None, None, "stow")
    assert (mr.idle_s, mr.after_release_s, mr.after_abort_s, mr.max_open_s) == (900, 300, 900, 3600)
    assert (mr.at_max_open, mr.expected_instances, len(mr.required_series)) == ("fail", 12, 2)
    assert (hand.idle_s, hand.after_release_s, hand.after_abort_s) == (60, 2, 300)
    assert (policy.site.after_release_s, hand.at_max_open, hand.expected_instances) == (20, "close", None)


def test_the_tables_reach_the_other_processes_and_come_from_a_variable_too(tmp_path: Path) -> None:
    settings = of(TABLES, tmp_path)
    save_effective(settings, tmp_path / "settings.json")
    assert load_effective(tmp_path / "settings.json").sources == settings.sources
    text = json.dumps([rule.model_dump(mode="json") for rule in settings.sources])
    assert load({"HEIMDALLR_SOURCES": text}).sources == settings.sources


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('name = "A"', "names nobody"),
        ('calling_aes = ["A"]', "sources.0.name"),
        ('name = "A"\ncalling_aes = ["A"]\nidle_second = 3', "sources.0.idle_second"),
        ('name = "A"\naddresses = ["10.0.0.1/8"]', "has host bits set"),
        ('name = "A"\ndoors = ["window"]', "sources.0.doors"),
        ('name = "A"\ndoors = ["dicom"]\nidle_seconds = 0', "sources.0.idle_seconds"),
        ('name = "A"\ndoors = ["dicom"]\nidle_seconds = inf', "sources.0.idle_seconds"),
        ('name = "A"\ndoors = ["dicom"]\nat_max_open = "drop"', "sources.0.at_max_open"),
        ('name = "A"\ndoors = ["dicom"]\n[[sources]]\nname = "A"\ndoors = ["stow"]', "two sources are called A"),
    ],
)
def test_a_table_that_cannot_be_meant_stops_the_start(tmp_path: Path, lines: str, told: str) -> None:
    with pytest.raises(BadSetting, match=told):
        of(f"[[sources]]\n{lines}\n", tmp_path)


def test_a_variable_that_is_no_json_is_refused() -> None:
    with pytest.raises(BadSetting, match="sources: is no JSON list of tables"):
        load({"HEIMDALLR_SOURCES": "CT1=5"})


@pytest.mark.parametrize(
    ("modality", "description", "n_images", "met"),
    [
        ("CT", "Thorax Soft 1.0", 2, True),
        ("ct", "SOFT", 9, True),
        ("CT", "Thorax Soft 1.0", 1, False),
        ("MR", "Thorax Soft 1.0", 2, False),
        ("CT", "Lung", 2, False),
        ("", "soft", 2, False),
    ],
)
def test_a_required_series_is_met_by_its_words(modality: str, description: str, n_images: int, *, met: bool) -> None:
    wanted = RequiredSeries(description="*soft*", modality="CT", min_images=2)
    assert wanted.is_met_by(modality, description, n_images) is met


def test_labels_are_made_ahead_where_the_site_or_a_source_says_so(tmp_path: Path) -> None:
    assert not load({}).completion.speculates
    assert load({"HEIMDALLR_SPECULATE": "true"}).completion.of("ANY", None, "dicom").speculate
    one = '[[sources]]\nname = "CT"\ncalling_aes = ["CT1"]\nspeculate = '
    some = of(one + "true", tmp_path).completion
    assert some.speculates
    assert [some.of(ae, None, "dicom").speculate for ae in ("CT1", "CT2")] == [True, False]
    others = of("speculate = true\n" + one + "false", tmp_path).completion
    assert [others.of(ae, None, "dicom").speculate for ae in ("CT1", "CT2")] == [False, True]
    with pytest.raises(BadSetting, match="speculate"):
        load({"HEIMDALLR_SPECULATE": "perhaps"})
