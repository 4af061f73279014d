"""Which of the series that may be measured is the best: one evaluator per rank, the lowest score wins.

The order, and every number and word, comes from the rule file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from heimdallr_ray.dicom.grouping import Kind, Series
from heimdallr_ray.dicom.phase import HeaderPhase, Phase, header_phases, seconds_of_day
from heimdallr_ray.dicom.rules import Profile
from heimdallr_ray.dicom.suitability import Facts, Study
from heimdallr_ray.dicom.words import first_word

MODALITY: Final = "modality"
LAST: Final = 1e9
"""Behind every series that names the thing."""


@dataclass(frozen=True)
class Score:
    """One rank of one series: what was looked at, and the number that orders; the lowest wins."""

    rule: str
    value: str
    score: float


@dataclass(frozen=True)
class Candidate:
    """A series that may be measured, ranked."""

    series: Series
    facts: Facts
    header_phase: HeaderPhase
    scores: tuple[Score, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """Orders candidates; no two are equal."""
        return (*(one.score for one in self.scores), self.series.uid, self.series.part)


@dataclass(frozen=True)
class _Rivals:
    """What the candidates of one modality have in common."""

    longest_mm: float
    thickest_mm: float


@dataclass(frozen=True)
class _One:
    """What an evaluator may look at."""

    series: Series
    facts: Facts
    phase: HeaderPhase
    rivals: _Rivals
    profile: Profile
    study: Study


Ranker = Callable[[_One], tuple[str, float]]


def ranked(found: Mapping[int, Facts], study: Study) -> list[Candidate]:
    """The series whose index in `study.series` is in `found`, the best first; the same for any order of input."""
    # Series that are refused tell of the injection too.
    stacks = [index for index, series in enumerate(study.series) if series.kind is Kind.STACK]
    told = header_phases([study.series[index].header for index in stacks], study.rules.file.contrast)
    phases = dict(zip(stacks, told, strict=True))
    made = [
        _candidate(study.series[index], facts, phases[index], _rivals(study.series[index], found, study), study)
        for index, facts in sorted(found.items())
    ]
    return sorted(made, key=lambda one: one.key)


def rank_of(phase: Phase, profile: Profile) -> float:
    """Place of a phase in the profile's list; those not named come last."""
    return float(profile.phases.index(phase) if phase in profile.phases else len(profile.phases))


def tied_before(rule: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate and those that no rank before `rule` parts from it; none where it has no such rank."""
    if not candidates or rule not in (one.rule for one in candidates[0].scores):
        return []
    best = _before(rule, candidates[0])
    return [one for one in candidates if _before(rule, one) == best]


def _before(rule: str, candidate: Candidate) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for one in candidate.scores:
        if one.rule == rule:
            break
        found.append((one.rule, one.score))
    return found


def _candidate(series: Series, facts: Facts, phase: HeaderPhase, rivals: _Rivals, study: Study) -> Candidate:
    profile = study.profile_of(series)
    one = _One(series, facts, phase, rivals, profile, study)
    scores = [Score(MODALITY, series.modality, float(study.modality_rank(series)))]
    for name in profile.order:
        value, score = RANKERS[name](one)
        scores.append(Score(name, value, score))
    return Candidate(series, facts, phase, tuple(scores))


def _rivals(series: Series, found: Mapping[int, Facts], study: Study) -> _Rivals:
    same = [facts for index, facts in found.items() if study.series[index].modality == series.modality]
    return _Rivals(max(one.extent_mm for one in same), max(one.thickness_mm for one in same))


def _penalty(one: _One) -> tuple[str, float]:
    header, facts, costs = one.series.header, one.facts, one.profile.penalties
    found: list[tuple[str, float]] = []
    types = {name: cost for name, cost in costs.types.items() if name in header.image_type}
    if header.image_type[:2] == ("DERIVED", "SECONDARY"):
        # What a vendor calls its own processing is not known here, and an image without it is the better one.
        unknown = [value for value in header.image_type[2:] if value and not first_word(value, costs.known_types)]
        types |= {name: costs.unknown_type for name in unknown if name not in types}
    if types:
        worst = max(types, key=lambda name: types[name])
        found.append((f"image type {worst}", types[worst]))
    word = first_word(header.series_description, one.profile.doubtful_words)
    if word is not None:
        found.append((f'the description says "{word}"', costs.doubtful_word))
    if facts.axial < costs.axial_min:
        found.append(("not axial", costs.non_axial))
    allowed = first_word(header.body_part, costs.small_field_allowed) is not None
    if facts.field_mm < costs.small_field_mm and not allowed:
        found.append((f"field of {facts.field_mm:.0f} mm", costs.small_field))
    flags = {flag: costs.flags[name] for flag in facts.flags if (name := flag.partition(":")[0]) in costs.flags}
    if flags:
        worst = max(flags, key=lambda flag: flags[flag])
        found.append((worst, flags[worst]))
    if header.b_value:
        found.append((f"diffusion weighted, b {header.b_value:g}", costs.diffusion))
    counted = [(words, cost) for words, cost in found if cost > 0]
    return ", ".join(words for words, _ in counted) or "none", float(sum(cost for _, cost in counted))


def _coverage(one: _One) -> tuple[str, float]:
    longest, profile = one.rivals.longest_mm, one.profile
    enough = max(profile.coverage_share * longest, longest - profile.coverage_slack_mm) - 1e-6
    return f"{one.facts.extent_mm:.0f} of {longest:.0f} mm", 0.0 if one.facts.extent_mm >= enough else 1.0


def _kernel(one: _One) -> tuple[str, float]:
    found = one.study.sharpness(one.series)
    return f"{one.series.header.kernel or 'not named'}: {found}", float(one.profile.kernel_rank[found])


def _thickness(one: _One) -> tuple[str, float]:
    low, high = one.profile.ideal_thickness_mm
    thickness = one.facts.thickness_mm
    away = max(low - thickness, thickness - high, 0.0)
    noisy = thickness < one.profile.noisy_below_mm <= one.rivals.thickest_mm
    return f"{thickness:g} mm", round(away, 2) + (1.0 if noisy else 0.0)


def _phase(one: _One) -> tuple[str, float]:
    return f"{one.phase.phase}: {'; '.join(one.phase.reasons)}", rank_of(one.phase.phase, one.profile)


def _time_point(one: _One) -> tuple[str, float]:
    number = one.series.phase
    return ("one time point" if number is None else f"time point {number}"), float(number or 0)


def _energy(one: _One) -> tuple[str, float]:
    kvp, header = one.series.header.kvp, one.series.header
    if set(one.profile.mixed_energy_types).intersection(header.image_type):
        return "mixed energies", 0.0
    return ("not named", 0.0) if kvp is None else (f"{kvp:g} kVp", abs(kvp - one.profile.preferred_kvp))


def _reconstructed(one: _One) -> tuple[str, float]:
    # Content Time (0008,0033): when the pixels were made. Of equal reconstructions the first is the planned one.
    time = seconds_of_day(one.series.header.content_time)
    return ("not named", LAST) if time is None else (one.series.header.content_time, time)


def _slices(one: _One) -> tuple[str, float]:
    return str(one.facts.slices), -float(one.facts.slices)


def _series_number(one: _One) -> tuple[str, float]:
    number = one.series.header.series_number
    return ("not named", LAST) if number is None else (str(number), float(number))


RANKERS: Final[Mapping[str, Ranker]] = {
    "penalty": _penalty,
    "coverage": _coverage,
    "kernel": _kernel,
    "thickness": _thickness,
    "phase": _phase,
    "time_point": _time_point,
    "energy": _energy,
    "reconstructed": _reconstructed,
    "slices": _slices,
    "series_number": _series_number,
}
