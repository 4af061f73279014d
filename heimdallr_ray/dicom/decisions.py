"""What the selection says: one decision per series, each with the lines that led to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from heimdallr_ray.dicom.grouping import Series
from heimdallr_ray.dicom.phase import HeaderPhase, Phase
from heimdallr_ray.dicom.rules import RulesRef
from heimdallr_ray.ids import Uid

ChosenBy = Literal["rules", "person"]


@dataclass(frozen=True)
class Line:
    """One rule and one series.

    Attributes:
        rule: as in the rule file, `geometry` for what the positions say.
        value: what the rule looked at.
        effect: passed; refused; overruled (by a person); ranked; decides (where it parted this series from the chosen
            one); tie (the phase model was asked); confirmed, disagrees, prefers (what it said).
        score: the number that ranks, the lowest wins; None where the rule does not rank.
    """

    rule: str
    value: str
    effect: str
    score: float | None = None


@dataclass(frozen=True)
class Override:
    """A person's choice of a series.

    Attributes:
        part: of a series that was split; None: the best of its parts.
        chosen_by: who.
        chosen_at: when, ISO 8601, UTC.
        reason: why, in the person's words.
    """

    series_uid: Uid
    part: int | None = None
    chosen_by: str = ""
    chosen_at: str = ""
    reason: str = ""

    def names(self, series: Series) -> bool:
        """True where this is the series, or a part of it, that the person chose."""
        return series.uid == self.series_uid and self.part in (None, series.part)


@dataclass(frozen=True)
class SeriesDecision:
    """One series (or part of one), accepted or refused by `code`, with the reason in words.

    Attributes:
        series_uid: as `Series.uid`.
        part: as `Series.part`.
        score: name and value of everything that ranked it, best = lowest, in the order of ranking; empty where refused.
        accepted: True for the chosen series alone.
        lines: every rule that was asked, in order.
        can_be_chosen: True where a person may choose it: its slices form a volume, suitable or not.
        chosen_by: who made it the chosen one; empty for the others.
        header_phase: contrast phase by the headers; None where the series was refused.
    """

    series_uid: Uid
    part: int
    accepted: bool
    code: str
    reason: str
    description: str = ""
    instances: int = 0
    score: tuple[tuple[str, float], ...] = ()
    lines: tuple[Line, ...] = ()
    can_be_chosen: bool = False
    chosen_by: ChosenBy | Literal[""] = ""
    header_phase: HeaderPhase | None = None


@dataclass(frozen=True)
class Finalist:
    """A candidate for the contrast phase model: nothing that ranks before the phase parts it from the chosen one."""

    series: Series
    header_phase: HeaderPhase
    rank: Mapping[Phase, float]
    """How much the purpose likes each phase: the lowest is the best."""


@dataclass(frozen=True)
class Fallback:
    """A series that only another reader may turn into a volume, and the refusal that this would overcome."""

    series: Series
    code: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The chosen series, or None, and one decision per series in the order given.

    Attributes:
        finalists: the chosen one first; more than one where only the contrast phase could part them and the headers do
            not tell it.
        rules: which rules decided.
        override: a person's choice that was followed, or could not be.
        series: the judged series, in the order of the decisions.
        fallback_code: why this package's own assembler cannot read the chosen series but another reader can; empty
            where it can.
        fallbacks: what another reader is asked for next where it cannot read the chosen series either, in order.
    """

    chosen: Series | None
    decisions: tuple[SeriesDecision, ...]
    finalists: tuple[Finalist, ...] = ()
    rules: RulesRef | None = None
    override: Override | None = None
    fallback_code: str = ""
    series: tuple[Series, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
