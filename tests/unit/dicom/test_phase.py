"""The contrast phase by the headers: concluded from words and order in time, never guessed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heimdallr_ray.dicom.header import Header
from heimdallr_ray.dicom.phase import HeaderPhase, Phase, header_phases, seconds_of_day
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.rules import default_rules
from tests.support.dicom import ct_study

PLAIN = read_header(ct_study(1)[0])


def header(description: str = "", agent: str = "", time: str = "", route: str = "") -> Header:
    return replace(
        PLAIN, series_description=description, contrast_agent=agent, acquisition_time=time, contrast_route=route
    )


def told(*headers: Header) -> list[HeaderPhase]:
    return list(header_phases(headers, default_rules().file.contrast))


@pytest.mark.parametrize(
    ("description", "agent", "phase"),
    [
        ("Abdomen native", "", Phase.NATIVE),
        ("Abdomen NON CONTRAST 2.0", "", Phase.NATIVE),
        ("without contrast", "NONE", Phase.NATIVE),
        ("Abdomen", "NONE", Phase.NATIVE),
        ("Abdomen", "oral", Phase.NATIVE),
        ("ABD WITHOUT IV CONTRAST", "NONE", Phase.NATIVE),
        ("ABD W/O IV CON", "ORAL & NO IV", Phase.NATIVE),
        ("ABD W/O IV CON", "Omnipaque 350", Phase.UNKNOWN),
        ("W WO CONTRAST", "Omnipaque 350", Phase.UNKNOWN),
        ("LATE ART", "Omnipaque 350", Phase.ARTERIAL),
        ("ORAL CONTRAST", "", Phase.UNKNOWN),
        ("portal venous", "Gastrografin + Ultravist", Phase.PORTAL_VENOUS),
        ("Abdomen", "Gastrografin + Ultravist", Phase.UNKNOWN),
        ("Late arterial", "Iomeron", Phase.ARTERIAL),
        ("ven_portal venous 1.5", "Iomeron", Phase.PORTAL_VENOUS),
        ("Abdomen venös", "", Phase.PORTAL_VENOUS),
        ("delayed 5 min", "Iomeron", Phase.DELAYED),
        ("CT with contrast", "", Phase.CONTRAST),
        ("Abdomen", "Omnipaque non-ionic 350 0.5 ml", Phase.CONTRAST),
        ("Abdomen", "", Phase.UNKNOWN),
        ("native and venous", "", Phase.UNKNOWN),
        ("arterial/venous", "Iomeron", Phase.UNKNOWN),
        ("native", "Iomeron", Phase.UNKNOWN),
        ("portal venous", "none", Phase.UNKNOWN),
        ("alternative", "", Phase.UNKNOWN),
        ("translate", "", Phase.UNKNOWN),
    ],
)
def test_the_phase_of_one_series(description: str, agent: str, phase: Phase) -> None:
    (found,) = told(header(description, agent))
    assert found.phase is phase, found.reasons
    assert found.reasons


def test_a_series_before_the_first_with_an_agent_is_native() -> None:
    before, first, after = told(
        header(time="101500"), header(agent="Iomeron", time="102000"), header(agent="Iomeron", time="102200.5")
    )
    assert [one.phase for one in (before, first, after)] == [Phase.NATIVE, Phase.CONTRAST, Phase.CONTRAST]
    assert "acquired before the first series with an agent" in before.reasons


@pytest.mark.parametrize("time", ["102005", "102500", "000500", ""])
def test_without_an_agent_and_not_before_it_the_phase_is_not_known(time: str) -> None:
    unnamed, _ = told(header(time=time), header(agent="Iomeron", time="230000" if time == "000500" else "102000"))
    assert unnamed.phase is Phase.UNKNOWN


def test_the_route_tells_what_was_injected() -> None:
    drunk, given = told(header(agent="Omnipaque", route="Oral"), header(agent="Omnipaque", route="IV"))
    assert (drunk.phase, given.phase) == (Phase.NATIVE, Phase.CONTRAST)


def test_an_agent_that_may_have_been_drunk_is_no_native_scan_before_the_first_injection() -> None:
    before, _ = told(header(agent="Iohexol PO", time="101500"), header(agent="Iomeron", time="102000"))
    assert before.phase is Phase.UNKNOWN


def test_order_in_time_contradicts_words() -> None:
    late, early, _ = told(
        header("native", time="103000"), header("portal venous", time="101000"), header(agent="x", time="102000")
    )
    assert late.phase is Phase.UNKNOWN
    assert early.phase is Phase.UNKNOWN


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("101112", 36672.0), ("101112.25", 36672.25), ("10", 36000.0), ("10:11:12", 36672.0), ("", None), ("25", None),
     ("1011a2", None), ("101", None), ("١٠", None)],
)  # fmt: skip
def test_times_of_day(text: str, seconds: float | None) -> None:
    assert seconds_of_day(text) == seconds
