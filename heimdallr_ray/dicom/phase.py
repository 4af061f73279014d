"""The contrast phase of a series as far as its headers tell, each conclusion with its reasons. Never a guess.

A phase is concluded from a word of the description that nothing contradicts, or from the absence of an agent in a
series that was acquired before one with it. An absent Contrast/Bolus Agent alone says nothing: PS3.3 section C.7.6.4
asks for it where contrast was used, and archives lose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from heimdallr_ray.dicom.contrast import ContrastWords, Injected, Phase, injected, named_phase
from heimdallr_ray.dicom.header import Header

__all__ = ["ContrastWords", "HeaderPhase", "Phase", "header_phases", "seconds_of_day"]

HALF_A_DAY_S: Final = 43_200.0


@dataclass(frozen=True)
class HeaderPhase:
    """The phase that the headers tell of, and why."""

    phase: Phase
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Evidence:
    injected: Injected
    named: Phase | None
    words: str
    several: bool
    acquired_s: float | None


_INJECTED: Final = {
    Injected.YES: "an agent is named",
    Injected.NO: "the agent's field says that none was given into a vein",
    Injected.NOT_SAID: "no agent is named",
    Injected.UNCLEAR: "the agent's fields do not tell whether it was injected",
}


def header_phases(headers: Sequence[Header], words: ContrastWords) -> tuple[HeaderPhase, ...]:
    """The phase of each series of one study, by the headers of all of them."""
    evidence = [_evidence(header, words) for header in headers]
    times = [one.acquired_s for one in evidence if one.injected is Injected.YES and one.acquired_s is not None]
    first = min(times, default=None)
    return tuple(_concluded(one, first, words.same_time_s) for one in evidence)


def _evidence(header: Header, words: ContrastWords) -> _Evidence:
    named = named_phase(header.series_description, words)
    return _Evidence(
        injected=injected(header.contrast_agent, header.contrast_route, words),
        named=named.phase,
        words=named.words,
        several=named.several,
        acquired_s=seconds_of_day(header.acquisition_time),
    )


def _concluded(one: _Evidence, first_injected_s: float | None, same_time_s: float) -> HeaderPhase:
    reasons: list[str] = []
    if one.words:
        reasons.append(f'the description says "{one.words}"')
    reasons.append(_INJECTED[one.injected])
    order = _order(one.acquired_s, first_injected_s, same_time_s)
    if order:
        reasons.append(f"acquired {order} the first series with an agent")
    if one.several:
        return HeaderPhase(Phase.UNKNOWN, (*reasons, "several phases are named"))
    if one.named is Phase.NATIVE:
        if one.injected is Injected.YES or order == "after":
            return HeaderPhase(Phase.UNKNOWN, (*reasons, "that contradicts a native scan"))
        return HeaderPhase(Phase.NATIVE, tuple(reasons))
    if one.named is not None:
        if one.injected is Injected.NO or order == "before":
            return HeaderPhase(Phase.UNKNOWN, (*reasons, "that contradicts contrast"))
        return HeaderPhase(one.named, tuple(reasons))
    if one.injected is Injected.YES:
        return HeaderPhase(Phase.CONTRAST, tuple(reasons))
    # Where an agent is named that may have been injected, the order tells nothing.
    if one.injected is Injected.NO or (order == "before" and one.injected is Injected.NOT_SAID):
        return HeaderPhase(Phase.NATIVE, tuple(reasons))
    return HeaderPhase(Phase.UNKNOWN, tuple(reasons))


def _order(acquired_s: float | None, first_s: float | None, same_time_s: float) -> str:
    if acquired_s is None or first_s is None:
        return ""
    apart = acquired_s - first_s
    # Half a day apart is midnight between them, or another examination: times of day alone do not order these.
    if abs(apart) <= same_time_s or abs(apart) > HALF_A_DAY_S:
        return ""
    return "before" if apart < 0 else "after"


def seconds_of_day(time: str) -> float | None:
    """Seconds since midnight of a DICOM TM value (PS3.5 section 6.2), None where it is none."""
    digits, _, fraction = time.strip().replace(":", "").partition(".")
    if len(digits) not in (2, 4, 6) or not digits.isascii() or not digits.isdecimal():
        return None
    hours, minutes, seconds = (int(digits[at : at + 2] or "0") for at in (0, 2, 4))
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    part = fraction[:6]
    return hours * 3600.0 + minutes * 60.0 + seconds + (int(part) / 10 ** len(part) if part.isdecimal() else 0.0)
