"""From measurements to findings and one urgency, each with its written reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from heimdallr_ray.metrics.result import Measurement, Status
from heimdallr_ray.reasons import SENTENCES
from heimdallr_ray.triage.rules import RULES, Rule, Urgency

NO_RULE_FIRED = "no rule fired; an absent AI finding excludes nothing"
NO_URGENCY = "No AI urgency"
NOTHING_MEASURED = f"{NO_URGENCY}: AI ran, but no number came out of it. The ordered priority stands."
ONLY_DESCRIBED = (
    f"{NO_URGENCY}: AI told which body regions the scan shows, and no other number came out of it. "
    "The ordered priority stands."
)
_NOT_CONCERNED = frozenset({"anatomy_absent", "brain_not_in_field", "modality", "not_ct"})
"""Reasons of `not_applicable` that say what the image shows. Every other one says what this installation lacks."""
_DESCRIPTIVE = frozenset({"body_regions"})
"""Measurements that tell what was scanned and nothing of its state."""
_NOT_MEASURED = "region_not_measured"
"""Flag of the image: another series of the study shows a part of the body that this one does not."""
_BORDER = re.compile(r"(brain_)?border_([a-z]+)")


@dataclass(frozen=True)
class Finding:
    """One rule that fired.

    Attributes:
        rule_id: of the rule.
        rule_version: of the rule.
        name: what was found, in words.
        urgency: that the rule asks for.
        reason: sentence for the reader: number, threshold, rule, citation.
        measurement_id: where the number comes from.
        compared: the number that was compared, unrounded.
        threshold: what it was compared with.
        unit: of both, UCUM.
        citation: source of the threshold.
        synthetic: made with demo weights or from a synthetic image; must not reach a patient's care.
        evidence: of the measurement.
    """

    rule_id: str
    rule_version: int
    name: str
    urgency: Urgency
    reason: str
    measurement_id: str
    compared: float
    threshold: float
    unit: str
    citation: str
    synthetic: bool
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Assessment:
    """What triage says of a study.

    Attributes:
        urgency: None where AI has nothing to say (it failed, or measured nothing); the ordered priority then stands.
        findings: the rules that fired, most urgent first.
        reason: why this urgency, in words.
    """

    urgency: Urgency | None
    findings: tuple[Finding, ...]
    reason: str


def _number(value: float) -> str:
    # Two significant digits below 1, one decimal above: a bleed of 0.104 mL must not read "0.1 mL".
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def _compared(rule: Rule, measurement: Measurement) -> float | None:
    if measurement.id != rule.measurement_id or measurement.status not in rule.statuses:
        return None
    number = measurement.value if rule.evidence_key is None else measurement.evidence.get(rule.evidence_key)
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return float(number)


def _amount(measurement: Measurement, compared: float) -> str:
    if measurement.value is not None:
        return _number(measurement.value)
    segmented = measurement.evidence.get("segmented_ml")
    return f"at least {_number(float(segmented) if isinstance(segmented, int | float) else compared)}"


def _answers(measurement: Measurement) -> bool:
    """True where the measurement speaks about its question, or the image does not raise it."""
    if measurement.status is Status.NOT_APPLICABLE:
        return _NOT_CONCERNED.issuperset(measurement.reasons)
    return measurement.status is Status.OK


def _sentence(code: str) -> str:
    return SENTENCES.get(code, f"{code.replace('_', ' ').capitalize()}.")


def _because(measurement: Measurement) -> str:
    """Why it has no answer, in sentences; the sides on which something is cut in one."""
    cut: dict[str, list[str]] = {}
    others: list[str] = []
    for code in measurement.reasons:
        border = _BORDER.fullmatch(code)
        # Every head scan ends below inside the brain's outline: no reason for silence.
        if border is None:
            others.append(_sentence(code))
        elif code != "brain_border_inferior" or len(measurement.reasons) == 1:
            cut.setdefault("brain" if border[1] else "structure", []).append(border[2])
    borders = [
        f"The {what} reaches the {' and '.join(sides)} {'edge' if len(sides) == 1 else 'edges'} of the scan: "
        "a part of it may be missing."
        for what, sides in cut.items()
    ]
    return " ".join([*borders, *others] or [_sentence(str(measurement.status))])


def _silent(rules: tuple[Rule, ...], measurements: tuple[Measurement, ...]) -> list[str]:
    """A sentence or more for each thing that a rule looks for and that could not be judged."""
    looked_for = {rule.measurement_id: rule.finding for rule in rules}
    return [
        f"{looked_for[one.id].capitalize()} could not be judged. {_because(one)}"
        for one in sorted(measurements, key=lambda one: one.id)
        if one.id in looked_for and not _answers(one)
    ]


def _elsewhere(measurements: tuple[Measurement, ...]) -> list[str]:
    """A sentence where a part of the study was not looked at at all: no number speaks of it."""
    flags = {flag for one in measurements for flag in one.provenance.image_flags.split(",")}
    regions = sorted(flag.partition(":")[2] for flag in flags if flag.partition(":")[0] == _NOT_MEASURED)
    return [f"{_sentence(_NOT_MEASURED)} Not measured: {', '.join(regions)}."] if regions else []


def _finding(rule: Rule, measurement: Measurement, compared: float) -> Finding:
    reason = (
        f"{rule.finding} {_amount(measurement, compared)} {rule.unit} ≥ {_number(rule.at_least)} {rule.unit}; "
        f"rule {rule.id} v{rule.version}, {rule.citation}"
    )
    return Finding(
        rule_id=rule.id,
        rule_version=rule.version,
        name=rule.finding,
        urgency=rule.urgency,
        reason=reason,
        measurement_id=measurement.id,
        compared=compared,
        threshold=rule.at_least,
        unit=rule.unit,
        citation=rule.citation,
        synthetic=measurement.provenance.synthetic,
        evidence=dict(measurement.evidence),
    )


def assess(measurements: Iterable[Measurement], rules: tuple[Rule, ...] = RULES) -> Assessment:
    """The findings, and the most urgent class among them.

    P3 ROUTINE needs at least one measurement with a value, and an answer from every measurement that a rule looks at:
    where AI failed, was cut short or is not installed there is no urgency from AI, which is not the same as routine.
    """
    all_of_them = tuple(measurements)
    fired = [
        (rule, measurement, compared)
        for rule in rules
        for measurement in all_of_them
        if (compared := _compared(rule, measurement)) is not None and compared >= rule.at_least
    ]
    findings = sorted(
        (_finding(rule, measurement, compared) for rule, measurement, compared in fired),
        key=lambda finding: (finding.urgency.value, finding.rule_id, -finding.compared),
    )
    if findings:
        return Assessment(findings[0].urgency, tuple(findings), findings[0].reason)
    silent = _silent(rules, all_of_them) + _elsewhere(all_of_them)
    if silent:
        return Assessment(None, (), f"{NO_URGENCY}: {' '.join(silent)}")
    if all(measurement.value is None for measurement in all_of_them if measurement.id not in _DESCRIPTIVE):
        described = any(measurement.value is not None for measurement in all_of_them)
        return Assessment(None, (), ONLY_DESCRIBED if described else NOTHING_MEASURED)
    return Assessment(Urgency.P3, (), NO_RULE_FIRED)
