"""What the settings refuse: weak secrets, doors open to a network without a rule, lists that name nobody."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from heimdallr_ray.config import LICENCE_LENGTH, Settings, load
from heimdallr_ray.errors import BadSetting

TOKEN = "t" * 16
OPEN = "0.0.0.0"


def of(**variables: str) -> Settings:
    return load({f"HEIMDALLR_{name.upper()}": value for name, value in variables.items()})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_rule(host: str) -> None:
    settings = of(dicom_host=host, server_host=host)
    assert (settings.dicom_host, settings.server_host) == (host, host)


@pytest.mark.parametrize("host", [OPEN, "::", "10.0.0.7", "ris.example.org"])
def test_http_beyond_loopback_needs_a_token(host: str) -> None:
    with pytest.raises(BadSetting, match="server_host is not loopback"):
        of(server_host=host)
    with pytest.raises(BadSetting, match="server_host is not loopback"):
        of(server_host=host, upload_token=TOKEN)
    assert of(server_host=host, api_token=TOKEN).server_host == host


@pytest.mark.parametrize("name", ["api_token", "upload_token"])
def test_a_short_token_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(BadSetting, match=f"{name} needs at least 16") as caught:
        of(**{name: "open-sesame-123"})
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("host", [OPEN, "::", "10.0.0.7", "pacs.example.org"])
def test_dicom_beyond_loopback_needs_a_rule(host: str) -> None:
    with pytest.raises(BadSetting, match="dicom_host is not loopback"):
        of(dicom_host=host)
    assert of(dicom_host=host, allowed_calling_aes="CT1").allowed_calling_aes == ("CT1",)
    assert of(dicom_host=host, allowed_addresses="10.0.0.0/8").allowed_addresses == ("10.0.0.0/8",)


@pytest.mark.parametrize("name", ["allowed_calling_aes", "allowed_addresses"])
@pytest.mark.parametrize("text", [",", " ", " , ,"])
def test_a_list_of_empty_parts_is_no_rule(name: str, text: str) -> None:
    with pytest.raises(BadSetting, match="dicom_host is not loopback"):
        of(dicom_host=OPEN, **{name: text})
    assert getattr(of(**{name: text}), name) == ()


def test_empty_parts_of_a_list_in_the_file_are_dropped_too(tmp_path: Path) -> None:
    file = tmp_path / "heimdallr.toml"
    file.write_text(f'dicom_host = "{OPEN}"\nallowed_calling_aes = ["", " "]\n')
    with pytest.raises(BadSetting, match="dicom_host is not loopback"):
        load({}, file)
    file.write_text(f'dicom_host = "{OPEN}"\nallowed_calling_aes = ["", " CT1 "]\n')
    assert load({}, file).allowed_calling_aes == ("CT1",)


@pytest.mark.parametrize(
    "everybody", ["0.0.0.0/0", "::/0", "10.0.0.0/8,0.0.0.0/0", "0.0.0.0/1,128.0.0.0/1", "::/1,8000::/1,10.0.0.0/8"]
)
def test_a_network_of_every_address_is_no_rule(everybody: str) -> None:
    with pytest.raises(BadSetting, match="dicom_host is not loopback"):
        of(dicom_host=OPEN, allowed_addresses=everybody)
    assert of(dicom_host=OPEN, allowed_addresses=everybody, allowed_calling_aes="CT1")
    assert of(allowed_addresses=everybody)


def test_networks_of_half_the_addresses_are_a_rule() -> None:
    assert of(dicom_host=OPEN, allowed_addresses="0.0.0.0/1,8000::/1")


@pytest.mark.parametrize("text", ["10.0.0.1/8", "ct-room-1", "10.0.0.0/33"])
def test_a_malformed_network_is_refused_by_its_settings_name(text: str) -> None:
    with pytest.raises(BadSetting, match=r"^allowed_addresses: "):
        of(allowed_addresses=text)


@pytest.mark.parametrize("length", [1, LICENCE_LENGTH - 1, LICENCE_LENGTH + 1])
def test_a_licence_number_of_another_length_is_refused_and_not_shown(length: int) -> None:
    with pytest.raises(BadSetting, match="totalsegmentator_licence needs 18 characters") as caught:
        of(totalsegmentator_licence="q" * length)
    assert "q" not in str(caught.value)


def test_a_licence_number_stays_a_secret() -> None:
    number = "z" * LICENCE_LENGTH
    settings = of(totalsegmentator_licence=number)
    assert settings.totalsegmentator_licence.get_secret_value() == number
    assert number not in repr(settings) and number not in str(settings.model_dump(mode="json"))
    assert not of(totalsegmentator_licence="").totalsegmentator_licence.get_secret_value()


ORIGINALS = {
    "HEIMDALLR_SERVER_HOST": ("server_host", "127.0.0.2", "127.0.0.2"),
    "HEIMDALLR_SERVER_PORT": ("server_port", "8123", 8123),
    "HEIMDALLR_AE_TITLE": ("ae_title", "BIFROST", "BIFROST"),
    "HEIMDALLR_DICOM_PORT": ("dicom_port", "11113", 11113),
    "HEIMDALLR_IDLE_SECONDS": ("idle_seconds", "45", 45.0),
    "HEIMDALLR_SCAN_SECONDS": ("scan_seconds", "7", 7.0),
    "HEIMDALLR_UPLOAD_TOKEN": ("upload_token", TOKEN, TOKEN),
    "HEIMDALLR_MAX_PARALLEL_CASES": ("max_parallel_cases", "3", 3),
}
"""Environment name of the original system to our setting, a text and what it means; none of them is the default."""


def plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def test_the_originals_eight_environment_names_are_understood() -> None:
    assert len(ORIGINALS) == 8
    settings = load({name: text for name, (_, text, _) in ORIGINALS.items()})
    understood = {name: plain(getattr(settings, field)) for name, (field, _, _) in ORIGINALS.items()}
    assert understood == {name: meaning for name, (_, _, meaning) in ORIGINALS.items()}
    defaults = load({})
    assert all(plain(getattr(defaults, field)) != meaning for field, _, meaning in ORIGINALS.values())


def test_an_unknown_variable_is_named_with_the_setting_that_is_near_it(tmp_path: Path) -> None:
    with pytest.raises(BadSetting) as caught:
        of(dicom_prot="1")
    assert caught.value.detail == "unknown setting HEIMDALLR_DICOM_PROT; did you mean HEIMDALLR_DICOM_PORT?"
    with pytest.raises(BadSetting) as caught:
        of(zzzzzz="1")
    assert caught.value.detail == "unknown setting HEIMDALLR_ZZZZZZ; docs/settings.md has them all"
    file = tmp_path / "heimdallr.toml"
    file.write_text("idle_second = 3\n")
    with pytest.raises(BadSetting) as caught:
        load({}, file)
    assert caught.value.detail == "unknown setting idle_second; did you mean idle_seconds?"


def test_what_is_wrong_is_said_without_the_words_of_a_library() -> None:
    with pytest.raises(BadSetting) as caught:
        of(server_host="10.0.0.7")
    assert caught.value.detail == "server_host is not loopback: set api_token first"
    with pytest.raises(BadSetting, match=r"^server_port: Input should be a valid integer"):
        of(server_port="web")
