"""What free text says of contrast: the words of the rule file, and what a negation before them turns them into. Pure.

Two fields are read: Series Description (0008,103E), and Contrast/Bolus Agent (0018,0010) with its Route (0018,1040).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from heimdallr_ray.dicom.words import Span, longest, spans

Word = Annotated[str, Field(min_length=1, max_length=64)]

MAX_NEGATED: Final = 4
"""Words that one negation covers: "without oral or iv contrast"."""

_JOINED: Final = re.compile(r"[\W_]*(?:(?:and|or|und|oder|et|ou|y|o|e|och|og)(?![^\W_])[\W_]*)?", re.IGNORECASE)
_OR: Final = re.compile(r"[\s_]*(?:&|/|\+|(?:and|or|nor|und|oder|et|ou|y|o|e)(?![^\W_]))[\s_]*", re.IGNORECASE)
_GAP: Final = re.compile(r"[\s_\-.:=(]*")
_ALONE: Final = re.compile(r"[\W_]*(?:\d.*)?", re.DOTALL)
_LETTERS: Final = re.compile(r"[^\W\d_]{2,}")


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


class Injected(StrEnum):
    """What the fields of the agent say of an injection."""

    YES = "yes"
    NO = "no"
    NOT_SAID = "not said"
    """Both are blank: PS3.3 section C.7.6.4 asks for them where contrast was used, and archives lose them."""
    UNCLEAR = "unclear"
    """An agent is named beside an oral way: drunk, injected, or both."""


class ContrastWords(BaseModel):
    """Table `contrast` of the rule file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    no_agent: tuple[Word, ...]
    negations: tuple[Word, ...]
    before: tuple[Word, ...]
    negations_behind: tuple[Word, ...]
    negated: tuple[Word, ...]
    alone: tuple[Word, ...]
    with_words: tuple[Word, ...]
    several: tuple[Word, ...]
    neutral: tuple[Word, ...]
    enteral: tuple[Word, ...]
    intravenous: tuple[Word, ...]
    fillers: tuple[Word, ...]
    same_time_s: Annotated[float, Field(ge=0, le=3600)]
    words: Mapping[Phase, tuple[Word, ...]]

    @model_validator(mode="after")
    def _phases(self) -> Self:
        if Phase.UNKNOWN in self.words:
            raise ValueError("contrast.words: no word says that a phase is unknown")
        if any(value != value.lower() for value in self.no_agent):
            raise ValueError("contrast.no_agent: write values in lower case")
        if not set(self.alone) <= set(self.negations):
            raise ValueError("contrast.alone: name words of contrast.negations")
        return self


@dataclass(frozen=True)
class Named:
    """What a description says.

    Attributes:
        phase: the one that it names; None where it names none, or several.
        words: those that were found.
        several: True where it names several phases.
    """

    phase: Phase | None
    words: str
    several: bool


def named_phase(text: str, words: ContrastWords) -> Named:
    """The phase that a description names. Of overlapping words the longest counts."""
    found = _Read.of(text, words, words.before)
    phases = {phase for _, phase in found.phases}
    listed = ", ".join(sorted(found.listed))
    named = phases - {Phase.CONTRAST}
    if found.several or len(named) > 1 or (Phase.NATIVE in named and Phase.CONTRAST in phases):
        return Named(None, listed, several=True)
    return Named(next(iter(named or phases), None), listed, several=False)


def injected(agent: str, route: str, words: ContrastWords) -> Injected:
    """Whether Contrast/Bolus Agent and Route say that something was given into a vessel.

    A name that no word of the file knows is taken for what it stands in: an agent, unless an oral way is named too.
    """
    agent, way = agent.strip(), _way(route, words)
    if not any(letter.isalnum() for letter in agent):
        return Injected.NO if way is Injected.NO else Injected.NOT_SAID
    told = Injected.NO if agent.lower() in words.no_agent else _agent(agent, words)
    if told is Injected.YES and way is Injected.NO:
        return Injected.NO
    if told is Injected.UNCLEAR and way in (Injected.YES, Injected.NO):
        return way
    only_enteral = told is Injected.NO and bool(spans(agent, words.enteral))
    return Injected.UNCLEAR if only_enteral and way is Injected.YES else told


def _way(route: str, words: ContrastWords) -> Injected:
    if spans(route, words.intravenous):
        return Injected.YES
    return Injected.NO if spans(route, words.enteral) else Injected.NOT_SAID


def _agent(agent: str, words: ContrastWords) -> Injected:
    read = _Read.of(agent, words)
    enteral = spans(agent, words.enteral)
    native = [span for span, phase in read.phases if phase is Phase.NATIVE]
    nothing = spans(agent, words.negations_behind)
    rest = _without(agent, [*read.negated, *enteral, *native, *nothing])
    if spans(rest, words.intravenous):
        return Injected.YES
    if rest == agent:
        return Injected.YES
    # "contrast" and "50 ml" beside what was drunk, or was not given, name nothing more.
    rest = _without(rest, spans(rest, words.fillers))
    if not _LETTERS.search(rest):
        return Injected.NO
    return Injected.UNCLEAR if enteral else Injected.YES


def _without(text: str, removed: Sequence[Span]) -> str:
    letters = list(text)
    for start, end, _ in removed:
        letters[start:end] = " " * (end - start)
    return "".join(letters)


@dataclass(frozen=True)
class _Read:
    """A text, once its words are found and its negations applied."""

    phases: tuple[tuple[Span, Phase], ...]
    listed: frozenset[str]
    several: bool
    negated: tuple[Span, ...]

    @classmethod
    def of(cls, text: str, words: ContrastWords, before: Sequence[str] = ()) -> _Read:
        """`before`: words that deny here as `words.negations` do."""
        kinds: dict[Span, Phase | None] = {}
        for phase, listed in words.words.items():
            kinds.update(dict.fromkeys(spans(text, listed), phase))
        for listed in (words.neutral, words.enteral):
            kinds.update(dict.fromkeys(spans(text, listed)))
        negations = spans(text, (*words.negations, *before))
        pairing = spans(text, words.with_words)
        severals = spans(text, words.several)
        kept = set(longest([*kinds, *negations, *pairing, *severals]))
        negations = [span for span in negations if span in kept and kinds.get(span, Phase.NATIVE) is Phase.NATIVE]
        several = [span for span in severals if span in kept]
        halves = [span for span in negations if span[2] in words.alone]
        several += _both(text, [span for span in pairing if span in kept], halves)
        negated = [span for start in negations if (span := _covered(text, start, words)) is not None]
        negated += _behind(text, words)
        phases = [
            (span, phase)
            for span, phase in kinds.items()
            if phase is not None and span in kept and not any(_covers(other, span) for other in (*several, *negated))
        ]
        phases += [(span, Phase.NATIVE) for span in negated if not any(_covers(other, span) for other in several)]
        listed = frozenset(span[2] for span, _ in phases) | {span[2] for span in several}
        return cls(tuple(phases), listed, bool(several), tuple(negated))


def _covers(outer: Span, inner: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _both(text: str, pairing: Sequence[Span], negations: Sequence[Span]) -> list[Span]:
    """Each pair such as "with and without", "w/wo", "wo & w"."""
    pairs = [(one, other) for one in pairing for other in negations]
    ordered = [(one, other) if one[0] < other[0] else (other, one) for one, other in pairs]
    return [
        (first[0], second[1], text[first[0] : second[1]].lower())
        for first, second in ordered
        if _JOINED.fullmatch(text, first[1], second[0])
    ]


def _covered(text: str, negation: Span, words: ContrastWords) -> Span | None:
    """The negation with the words behind it that it denies; None where it denies no contrast."""
    end, denied, enteral = negation[1], False, False
    for _ in range(MAX_NEGATED):
        # Of what was not drunk only a conjunction leads on: "without oral or iv contrast".
        gap = (_OR if enteral else _GAP).match(text, end)
        if gap is None:
            break
        step = _at(text, gap.end(), words.negated)
        if step is not None:
            denied = denied or not enteral or bool(spans(step[2], words.intravenous))
        else:
            step = _at(text, gap.end(), words.enteral)
            enteral = enteral or step is not None
        if step is None:
            break
        end = step[1]
    if denied:
        return negation[0], end, text[negation[0] : end].lower()
    if negation[2] in words.alone and end == negation[1] and _ALONE.fullmatch(text, end):
        return negation
    return None


def _behind(text: str, words: ContrastWords) -> list[Span]:
    """Each place such as "contrast: none"."""
    found: list[Span] = []
    for one in spans(text, words.negated):
        gap = _GAP.match(text, one[1])
        step = None if gap is None else _at(text, gap.end(), words.negations_behind)
        if step is not None:
            found.append((one[0], step[1], text[one[0] : step[1]].lower()))
    return found


def _at(text: str, start: int, listed: Sequence[str]) -> Span | None:
    """The longest of the words that begins at `start`."""
    here = [span for span in spans(text, listed) if span[0] == start]
    return max(here, key=lambda span: span[1], default=None)
