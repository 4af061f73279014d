"""docs/operations/heimdallr.toml is a file that starts, and the settings that it only shows are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from heimdallr_ray.config import Settings, load
from heimdallr_ray.errors import BadSetting

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "operations" / "heimdallr.toml"
SHOWN = re.compile(r"^# (?=([a-z_]+) = )", re.MULTILINE)
SECRETS = {"api_token", "upload_token", "totalsegmentator_licence"}


def test_the_example_is_in_force_as_it_stands() -> None:
    settings = load({}, config_file=EXAMPLE)
    written = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    assert len(written) >= 10
    for name, value in written.items():
        of_settings = getattr(settings, name)
        assert (list(of_settings) if isinstance(value, list) else type(value)(of_settings)) == value


def test_what_the_example_only_shows_can_be_uncommented(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    whole = tmp_path / "heimdallr.toml"
    whole.write_text(SHOWN.sub("", text), encoding="utf-8")
    settings, shown = load({}, config_file=whole), set(SHOWN.findall(text))
    assert len(shown) >= 5 and shown >= SECRETS
    for name in shown - {"weights_dir"}:
        assert getattr(settings, name) == Settings.model_fields[name].default
    assert settings.weights_dir == load({}, config_file=EXAMPLE).resolved_weights_dir


def test_no_secret_of_the_example_can_be_left_as_it_is() -> None:
    assert not SECRETS & set(tomllib.loads(EXAMPLE.read_text(encoding="utf-8")))


def test_a_misspelt_key_in_the_file_stops_the_start(tmp_path: Path) -> None:
    wrong = tmp_path / "heimdallr.toml"
    wrong.write_text(EXAMPLE.read_text(encoding="utf-8").replace("dicom_port", "dicom_prot"), encoding="utf-8")
    with pytest.raises(BadSetting, match="dicom_prot"):
        load({}, config_file=wrong)
