"""`select`: which series of a study becomes the volume, and why each other one does not, line by line.

The rule file (`rules.py`) says what is refused, in which order, and what ranks the rest; a person may name a series
instead. Nothing depends on pixels, on the order of arrival or on the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from heimdallr_ray.dicom.decisions import Fallback, Finalist, Line, Override, Selection, SeriesDecision
from heimdallr_ray.dicom.grouping import Series
from heimdallr_ray.dicom.phase import Phase
from heimdallr_ray.dicom.ranking import Candidate, rank_of, ranked, tied_before
from heimdallr_ray.dicom.rules import INDISPENSABLE, Purpose, SeriesRules, default_rules
from heimdallr_ray.dicom.suitability import RULES, Facts, Study, facts_of, too_thick
from heimdallr_ray.dicom.wording import of_fallback, of_person
from heimdallr_ray.errors import NotAVolume, TooLarge

MAX_CONVERSIONS: Final = 3
"""Series of one study that another reader is asked for, each for up to `limits.CONVERTER_SECONDS`."""

MAX_FINALISTS: Final = 2
"""Each costs a rough segmentation of the whole volume before anything else is computed."""

PHASE: Final = "phase"
_PASSED_BY_FALLBACK: Final = frozenset({"mosaic", "multiframe_without_groups", "too_few_slices"})
"""Refusals that say nothing of an object that another reader turns into several slices."""


@dataclass(frozen=True)
class _Judged:
    """What the refusals said of one series."""

    lines: tuple[Line, ...]
    refused: tuple[str, str] | None
    """Code and reason of the first refusal."""
    impossible: bool
    """True where it cannot become a volume, whoever wants it."""
    facts: Facts | None
    fallback: str = ""
    """Code for which another reader could be asked."""


def select(
    series_list: Sequence[Series],
    purpose: Purpose = "volume",
    *,
    rules: SeriesRules | None = None,
    override: Override | None = None,
    fallback: Callable[[str], bool] = lambda code: False,
) -> Selection:
    """The series that becomes the volume, with one decision for each; the same for any order of input.

    Never raises on what a sender wrote: a series that cannot be judged is refused by code. A series that a person
    names is taken although a rule finds it unsuitable, never although it is no volume.

    Args:
        series_list: as `grouping.group` gives them.
        purpose: what the volume is for.
        rules: the package's own where None.
        override: a person's choice.
        fallback: True for a refusal code that another reader may overcome; such a series ranks behind all others.

    Raises:
        BadSetting: the rules do not know the purpose.
    """
    study = Study(tuple(series_list), rules or default_rules(), purpose)
    judged = [_judge(series, study, fallback) for series in study.series]
    wanted = {index for index, series in enumerate(study.series) if override is not None and override.names(series)}
    found = {
        index: one.facts
        for index, one in enumerate(judged)
        if one.facts is not None and (one.refused is None or index in wanted)
    }
    candidates = ranked(found, study)
    if override is not None:
        best = next((one for one in candidates if override.names(one.series)), None)
    else:
        best = candidates[0] if candidates else None
    ref = study.rules.ref(purpose)
    fallbacks = _fallbacks(judged, study, wanted, override) if best is None else []
    fallback_index = fallbacks[0] if fallbacks else None
    by_part = {(one.series.uid, one.series.part): one for one in candidates}
    decisions = tuple(
        _decision(
            series,
            judged[index],
            by_part.get((series.uid, series.part)),
            best,
            override,
            by_fallback=index == fallback_index,
        )
        for index, series in enumerate(study.series)
    )
    if fallback_index is not None:
        more = tuple(
            Fallback(study.series[index], judged[index].fallback, _refusal(judged[index])) for index in fallbacks
        )
        return Selection(
            more[0].series, decisions, (), ref, override, more[0].code, series=study.series, fallbacks=more[1:]
        )
    finalists = () if best is None else _finalists(best, [] if override is not None else candidates, study)
    chosen = None if best is None else best.series
    return Selection(chosen, decisions, finalists, ref, override, series=study.series)


def _judge(series: Series, study: Study, fallback: Callable[[str], bool]) -> _Judged:
    profile = study.profile_of(series)
    lines: list[Line] = []
    refusals: list[tuple[str, str]] = []
    for code in profile.refuse:
        seen = RULES[code].test(series, profile, study)
        lines.append(Line(code, seen.value, "refused" if seen.refused else "passed"))
        if seen.refused:
            refusals.append((code, seen.refused))
    impossible = any(code in INDISPENSABLE for code, _ in refusals)
    facts = None
    if not impossible:
        try:
            facts = facts_of(series)
        except NotAVolume as error:
            refusals.append((error.reason, error.detail))
        except TooLarge as error:
            refusals.append((error.code, error.detail))
        if facts is None:
            lines.append(Line("geometry", f"{refusals[-1][0]}: {refusals[-1][1]}", "refused"))
        else:
            lines.append(Line("geometry", _geometry_words(facts), "passed"))
            thick = too_thick(facts.thickness_mm, profile, apart=facts.apart) if "too_thick" in profile.refuse else None
            if thick is not None and thick.refused and "too_thick" not in (code for code, _ in refusals):
                lines.append(Line("too_thick", thick.value, "refused"))
                refusals.append(("too_thick", thick.refused))
    other_reader = next((code for code, _ in refusals if fallback(code)), "")
    overcome = {other_reader, *_PASSED_BY_FALLBACK}
    if other_reader and any(code not in overcome for code, _ in refusals):
        other_reader = ""
    return _Judged(
        lines=tuple(lines),
        refused=refusals[0] if refusals else None,
        impossible=facts is None and not other_reader,
        facts=facts,
        fallback=other_reader,
    )


def _geometry_words(facts: Facts) -> str:
    flags = f", {', '.join(facts.flags)}" if facts.flags else ""
    of = "up to" if facts.apart else "of"
    apart = " apart" if facts.apart else ""
    return f"{facts.slices} slices {of} {facts.thickness_mm:g} mm{apart} over {facts.extent_mm:.0f} mm{flags}"


def _fallbacks(judged: Sequence[_Judged], study: Study, wanted: set[int], override: Override | None) -> list[int]:
    """The series to try with another reader: of most images, then by number."""
    able = [index for index, one in enumerate(judged) if one.fallback and (override is None or index in wanted)]
    ordered = sorted(
        able,
        key=lambda index: (
            study.modality_rank(study.series[index]),
            -study.series[index].frames,
            study.series[index].header.series_number or 0,
            study.series[index].uid,
            study.series[index].part,
        ),
    )
    return ordered[:MAX_CONVERSIONS]


def _refusal(judged: _Judged) -> str:
    return "" if judged.refused is None else judged.refused[1]


def _finalists(best: Candidate, candidates: Sequence[Candidate], study: Study) -> tuple[Finalist, ...]:
    """The best, and those that only a contrast phase that no header tells could put before it."""
    profile = study.profile_of(best.series)
    rank = {phase: rank_of(phase, profile) for phase in Phase}
    told = best.header_phase.phase
    tied: list[Candidate] = []
    if profile.phases and not (told.certain and rank[told] == 0):
        tied = [
            one
            for one in tied_before(PHASE, candidates)
            if one is not best and not (told.certain and one.header_phase.phase.certain)
        ]
    chosen = [best, *tied][:MAX_FINALISTS]
    return tuple(Finalist(one.series, one.header_phase, rank) for one in chosen)


def _decision(
    series: Series,
    judged: _Judged,
    candidate: Candidate | None,
    best: Candidate | None,
    override: Override | None,
    *,
    by_fallback: bool,
) -> SeriesDecision:
    is_best = candidate is not None and candidate is best
    wanted = override is not None and override.names(series)
    code, reason = _verdict(judged, candidate, best, override, by_fallback=by_fallback)
    accepted = is_best or by_fallback
    return SeriesDecision(
        series_uid=series.uid,
        part=series.part,
        accepted=accepted,
        code=code,
        reason=reason,
        description=series.header.series_description,
        instances=len(series.instances),
        score=() if candidate is None else tuple((one.rule, one.score) for one in candidate.scores),
        lines=_lines(judged, candidate, best, overruled=is_best and wanted),
        can_be_chosen=not judged.impossible,
        chosen_by=("person" if wanted else "rules") if accepted else "",
        header_phase=None if candidate is None else candidate.header_phase,
    )


def _verdict(
    judged: _Judged,
    candidate: Candidate | None,
    best: Candidate | None,
    override: Override | None,
    *,
    by_fallback: bool,
) -> tuple[str, str]:
    if by_fallback:
        return "chosen", of_fallback(_refusal(judged), override)
    if candidate is None:
        if judged.refused is not None:
            return judged.refused
        raise AssertionError("a series that nothing refuses is a candidate")
    described = _described(candidate)
    if candidate is best:
        return "chosen", of_person(described, judged.refused, override)
    if override is not None:
        code, reason = "other_chosen", f"a person chose another series; this one: {described}"
        return code, reason
    if best is None:
        raise AssertionError("of candidates one is the best")
    code, reason = "outranked", f"another series is preferred by {_parting(candidate, best)}; this one: {described}"
    return code, reason


def _parting(candidate: Candidate, best: Candidate) -> str:
    pairs = zip(candidate.scores, best.scores, strict=False)
    return next((mine.rule for mine, its in pairs if mine.score != its.score), "uid")


def _lines(
    judged: _Judged, candidate: Candidate | None, best: Candidate | None, *, overruled: bool
) -> tuple[Line, ...]:
    lines = [replace(one, effect="overruled") if overruled and one.effect == "refused" else one for one in judged.lines]
    if candidate is None:
        return tuple(lines)
    parting = "" if best is None or candidate is best else _parting(candidate, best)
    lines += [
        Line(one.rule, one.value, "decides" if one.rule == parting else "ranked", one.score) for one in candidate.scores
    ]
    return tuple(lines)


def _described(candidate: Candidate) -> str:
    facts, series = candidate.facts, candidate.series
    kernel = series.header.kernel or "not named"
    return (
        f"{facts.slices} slices of {facts.thickness_mm:g} mm over {facts.extent_mm:.0f} mm, kernel {kernel}"
        + (f", phase {series.phase}" if series.phase else "")
        + (f", {', '.join(facts.flags)}" if facts.flags else "")
    )
