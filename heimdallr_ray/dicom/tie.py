"""The contrast phase model breaks a tie between finalists, where no header contradicts it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from heimdallr_ray.dicom.decisions import Line, Selection, SeriesDecision
from heimdallr_ray.dicom.grouping import Series
from heimdallr_ray.dicom.phase import Phase


def break_tie(selection: Selection, readings: Sequence[Phase | None]) -> Selection:
    """The selection after the contrast phase model has read the finalists.

    What the model says counts only where no header contradicts it; else the order of the rules stands, and the lines
    say so.

    Args:
        selection: with finalists.
        readings: phase of each finalist; None where the model did not decide.
    """
    finalists = selection.finalists
    if len(finalists) < 2 or len(readings) != len(finalists):
        return selection
    lines: list[Line] = []
    agreed = True
    for one, reading in zip(finalists, readings, strict=True):
        told = one.header_phase.phase
        if reading is None or not reading.certain:
            agreed = False
            lines.append(Line("phase_model", "not decided", "tie"))
        elif _contradicts(reading, told):
            agreed = False
            lines.append(Line("phase_model", f"{reading}; the headers say {told}", "disagrees"))
        else:
            lines.append(Line("phase_model", str(reading), "confirmed" if reading is told else "prefers"))
    winner = 0
    if agreed:
        ranks = [one.rank[reading] for one, reading in zip(finalists, readings, strict=True) if reading is not None]
        winner = ranks.index(min(ranks))
    chosen = finalists[winner].series
    by_part = {(one.series.uid, one.series.part): line for one, line in zip(finalists, lines, strict=True)}
    decisions = tuple(_after_model(one, by_part.get((one.series_uid, one.part)), chosen) for one in selection.decisions)
    ordered = (finalists[winner], *finalists[:winner], *finalists[winner + 1 :])
    return replace(selection, chosen=chosen, decisions=decisions, finalists=ordered)


def _contradicts(reading: Phase, told: Phase) -> bool:
    if told.certain:
        return reading is not told
    return told is Phase.CONTRAST and reading is Phase.NATIVE


def _after_model(decision: SeriesDecision, line: Line | None, chosen: Series) -> SeriesDecision:
    if line is None:
        return decision
    lines = (*decision.lines, line)
    is_chosen = (decision.series_uid, decision.part) == (chosen.uid, chosen.part)
    if is_chosen == decision.accepted:
        return replace(decision, lines=lines)
    if is_chosen:
        reason = f"{decision.reason}; the contrast phase model preferred it: {line.value}"
        return replace(decision, accepted=True, code="chosen", reason=reason, lines=lines, chosen_by="rules")
    reason = f"another series is preferred by the contrast phase model; this one: {decision.reason}"
    return replace(decision, accepted=False, code="outranked", reason=reason, lines=lines, chosen_by="")
