"""The contrast phase of a series as far as its headers tell, each conclusion with its reasons. Never a guess.

A phase is concluded from a word of the description that nothing contradicts, or from the absence of an agent in a
series that was acquired before one with it. An absent Contrast/Bolus Agent alone says nothing: PS3.3 section C.7.6.4
asks for it where contrast was used, and archives lose it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from heimdallr_ray.dicom.header import Header
from heimdallr_ray.dicom.words import spans

Word = Annotated[str, Field(min_length=1, max_length=64)]
HALF_A_DAY_S: Final = 43_200.0


class Phase(StrEnum):
    """What is known of the contrast of a series."""

    NATIVE = "native"
    ARTERIAL = "arterial"
    PORTAL_VENOUS = "portal_venous"
    DELAYED = "delayed"
    CONTRAST = "contrast"
    """Contrast was given; which phase is not known."""
    UNKNOWN = "unknown"

    @property
    def certain(self) -> bool:
        """True where it names one phase."""
        return self not in (Phase.CONTRAST, Phase.UNKNOWN)


class ContrastWords(BaseModel):
    """Table `contrast` of the rule file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    no_agent: tuple[Word, ...]
    same_time_s: Annotated[float, Field(ge=0, le=3600)]
    words: Mapping[Phase, tuple[Word, ...]]

    @model_validator(mode="after")
    def _phases(self) -> Self:
        if Phase.UNKNOWN in self.words:
            raise ValueError("contrast.words: no word says that a phase is unknown")
        if any(value != value.lower() for value in self.no_agent):
            raise ValueError("contrast.no_agent: write values in lower case")
        return self


@dataclass(frozen=True)
class HeaderPhase:
    """The phase that the headers tell of, and why."""

    phase: Phase
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Evidence:
    agent: str | None
    """Blank: the header has none. None: it says that none was given."""
    named: Phase | None
    word: str
    several: bool
    acquired_s: float | None


def header_phases(headers: Sequence[Header], words: ContrastWords) -> tuple[HeaderPhase, ...]:
    """The phase of each series of one study, by the headers of all of them."""
    evidence = [_evidence(header, words) for header in headers]
    injected = [one.acquired_s for one in evidence if one.agent and one.acquired_s is not None]
    first = min(injected, default=None)
    return tuple(_concluded(one, first, words.same_time_s) for one in evidence)


def _evidence(header: Header, words: ContrastWords) -> _Evidence:
    agent = header.contrast_agent.strip()
    named, word, several = _named(header.series_description, words)
    return _Evidence(
        agent=None if agent.lower() in words.no_agent else agent,
        named=named,
        word=word,
        several=several,
        acquired_s=seconds_of_day(header.acquisition_time),
    )


def _named(text: str, words: ContrastWords) -> tuple[Phase | None, str, bool]:
    """The phase that `text` names, its word, and whether it names several."""
    found = [(span, phase) for phase, listed in words.words.items() for span in spans(text, listed)]
    longest = [
        (span, phase)
        for span, phase in found
        if not any(_covers(other, span) for other, _ in found if other[:2] != span[:2])
    ]
    phases = {phase for _, phase in longest}
    named = phases - {Phase.CONTRAST}
    listed = ", ".join(sorted({span[2] for span, _ in longest}))
    if len(named) > 1 or (Phase.NATIVE in named and Phase.CONTRAST in phases):
        return None, listed, True
    return next(iter(named or phases), None), listed, False


def _covers(outer: tuple[int, int, str], inner: tuple[int, int, str]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _concluded(one: _Evidence, first_injected_s: float | None, same_time_s: float) -> HeaderPhase:
    reasons: list[str] = []
    if one.word:
        reasons.append(f'the description says "{one.word}"')
    if one.agent is None:
        reasons.append("the agent's field says that none was given")
    else:
        reasons.append("an agent is named" if one.agent else "no agent is named")
    order = _order(one.acquired_s, first_injected_s, same_time_s)
    if order:
        reasons.append(f"acquired {order} the first series with an agent")
    if one.several:
        return HeaderPhase(Phase.UNKNOWN, (*reasons, "several phases are named"))
    if one.named is Phase.NATIVE:
        if one.agent or order == "after":
            return HeaderPhase(Phase.UNKNOWN, (*reasons, "that contradicts a native scan"))
        return HeaderPhase(Phase.NATIVE, tuple(reasons))
    if one.named is not None:
        if one.agent is None or order == "before":
            return HeaderPhase(Phase.UNKNOWN, (*reasons, "that contradicts contrast"))
        return HeaderPhase(one.named, tuple(reasons))
    if one.agent:
        return HeaderPhase(Phase.CONTRAST, tuple(reasons))
    if one.agent is None or order == "before":
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
