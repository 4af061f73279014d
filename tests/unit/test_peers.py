"""Peers of the settings: where reports go, as one word each."""

from __future__ import annotations

from pathlib import Path

import pytest

from heimdallr_ray.config import Peer, load
from heimdallr_ray.errors import BadSetting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CT1=10.0.0.5:104", Peer("CT1", "10.0.0.5", 104)),
        (" PACS MAIN = pacs.example.org:11112 ", Peer("PACS MAIN", "pacs.example.org", 11112)),
        ("A=B=127.0.0.1:104", Peer("A=B", "127.0.0.1", 104)),
        ("CT1=[::1]:104", Peer("CT1", "::1", 104)),
        ("CT1=tls:10.0.0.5:2762", Peer("CT1", "10.0.0.5", 2762, tls=True)),
        ("CT1=tls:[fe80::1]:2762", Peer("CT1", "fe80::1", 2762, tls=True)),
        ("CT1=tls:104", Peer("CT1", "tls", 104)),
    ],
)
def test_a_peer_is_read(text: str, expected: Peer) -> None:
    assert Peer.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("CT1", "CT1=", "=host:104", "CT1=host", "CT1=host:", "CT1=:104", "CT1=host:0", "CT1=host:65536"),
        *("CT1=host:-1", "CT1=host:1e3", "CT1=::1:104", "CT1=[zz]:104", "CT1=ho st:104", "CT1=host/..:104"),
        *("A\\B=host:104", "SEVENTEEN_LETTERS=host:104", "CTÜ=host:104", "C\nT=host:104", "CT1=http://host:104"),
    ],
)
def test_what_names_no_peer_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="commitment_peers"):
        load({}, commitment_peers=[text])


def test_peers_come_from_variable_and_file_alike(tmp_path: Path) -> None:
    file = tmp_path / "heimdallr.toml"
    file.write_text(
        'commitment_peers = ["CT1=10.0.0.5:104", "PACS=tls:pacs:2762"]\ndicom_tls_ca = "ca.pem"', encoding="utf-8"
    )
    of_file = load({}, config_file=file)
    of_variable = load({"HEIMDALLR_COMMITMENT_PEERS": "CT1=10.0.0.5:104, PACS=tls:pacs:2762,"}, dicom_tls_ca="ca.pem")
    assert of_file.peers == of_variable.peers
    assert of_file.peers["PACS"] == Peer("PACS", "pacs", 2762, tls=True)


def test_a_title_that_is_named_twice_is_refused() -> None:
    with pytest.raises(BadSetting, match="CT1 is named twice"):
        load({}, commitment_peers=["CT1=a:104", "CT1=b:104"])


def test_every_list_may_be_a_variable() -> None:
    assert load({"HEIMDALLR_MEASUREMENTS": "a, b"}).measurements == ("a", "b")


def test_a_peer_that_wants_tls_needs_an_authority() -> None:
    with pytest.raises(BadSetting, match="set dicom_tls_ca"):
        load({}, commitment_peers=["PACS=tls:pacs:2762"])
