"""Who may associate."""

from __future__ import annotations

import pytest

from heimdallr_ray.config import Settings
from heimdallr_ray.listener.gate import GateRules


def rules(**changes: object) -> GateRules:
    return GateRules.of(Settings(**changes))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("called", "calling", "open_now", "room", "reason"),
    [
        ("HEIMDALLR", "CT1", 0, True, None),
        ("HEIMDALLR       ", " CT1", 0, True, None),
        ("heimdallr", "CT1", 0, True, "called_ae"),
        ("", "CT1", 0, True, "called_ae"),
        ("HEIMDALLR", "CT2", 0, True, "calling_ae"),
        ("HEIMDALLR", "CT1", 2, True, "too_many_associations"),
        ("HEIMDALLR", "CT1", 1, False, "storage_full"),
    ],
)
def test_refusals(called: str, calling: str, open_now: int, room: bool, reason: str | None) -> None:
    found = rules(allowed_calling_aes=("CT1",), max_associations=2).refusal(called, calling, open_now, has_room=room)
    assert (found.reason if found else None) == reason


def test_what_may_pass_later_is_rejected_transiently() -> None:
    full = rules().refusal("HEIMDALLR", "X", 0, has_room=False)
    stranger = rules().refusal("OTHER", "X", 0, has_room=True)
    assert full is not None
    assert stranger is not None
    assert (full.result, stranger.result) == (0x02, 0x01)


@pytest.mark.parametrize(
    ("address", "admitted"),
    [
        ("10.1.2.3", True),
        ("10.2.2.3", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.2.2.3", False),
        ("fe80::1%eth0", True),
        ("2001:db8::1", False),
        ("not an address", False),
    ],
)
def test_networks(address: str, admitted: bool) -> None:
    assert rules(allowed_addresses=("10.1.0.0/16", "fe80::/10")).admits_address(address) is admitted


def test_no_network_named_means_any() -> None:
    assert rules().admits_address("192.0.2.1")
