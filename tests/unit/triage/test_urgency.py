from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdallr_ray.catalog.states import Urgency as CatalogUrgency
from heimdallr_ray.metrics.result import Measurement, Provenance, Status
from heimdallr_ray.triage.rules import RULES, Urgency
from heimdallr_ray.triage.urgency import assess

ICH = "intracranial_hemorrhage_volume"


def _measurement(
    name: str,
    value: float | None,
    status: Status = Status.OK,
    *,
    synthetic: bool = False,
    reason: str = "reason",
    **evidence: float,
) -> Measurement:
    reasons = () if value is not None else (reason,)
    return Measurement(name, value, "mL", status, Provenance(name, 1, synthetic=synthetic), reasons, 10, evidence)


LIVER = _measurement("liver_volume", 1500.0)


def test_blood_is_p0_with_its_written_reason():
    found = assess((LIVER, _measurement(ICH, 31.24, largest_component_ml=30.0)))
    assert found.urgency is Urgency.P0
    assert found.urgency.word == "CRITICAL"
    assert found.reason == (
        "intracranial hemorrhage 31.2 mL ≥ 0.1 mL; rule ich-any v1, "
        "ACR Actionable Reporting Work Group category 1 (Larson, J Am Coll Radiol 2014)"
    )
    (finding,) = found.findings
    assert (finding.rule_id, finding.rule_version, finding.threshold, finding.unit) == ("ich-any", 1, 0.1, "mL")
    assert finding.compared == 30.0
    assert finding.measurement_id == ICH


@pytest.mark.parametrize(("component_ml", "urgency"), [(0.0999, Urgency.P3), (0.1, Urgency.P0), (0.0, Urgency.P3)])
def test_the_threshold_is_one_component_of_a_tenth_of_a_millilitre(component_ml: float, urgency: Urgency):
    # 0.5 mL in all: scattered specks below 0.1 mL each do not fire.
    assert assess((_measurement(ICH, 0.5, largest_component_ml=component_ml),)).urgency is urgency


def test_blood_cut_by_the_scan_is_still_p0():
    cut = _measurement(ICH, None, Status.INCOMPLETE_FOV, largest_component_ml=5.0, segmented_ml=6.04)
    found = assess((cut,))
    assert found.urgency is Urgency.P0
    assert found.reason.startswith("intracranial hemorrhage at least 6.0 mL ≥ 0.1 mL")


def test_blood_in_slices_too_far_apart_is_still_p0():
    thick = _measurement(ICH, None, Status.GATED, largest_component_ml=5.0, segmented_ml=6.0)
    assert assess((LIVER, thick)).urgency is Urgency.P0


def test_without_a_finding_it_is_routine_and_says_that_nothing_is_excluded():
    found = assess((LIVER, _measurement(ICH, 0.0, largest_component_ml=0.0)))
    assert (found.urgency, found.findings) == (Urgency.P3, ())
    assert found.reason == "no rule fired; an absent AI finding excludes nothing"


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (Status.NOT_APPLICABLE, "weights_missing", "The model for this is not installed here."),
        (Status.NOT_APPLICABLE, "licence", "Not run, because this site has no licence for the model."),
        (Status.NOT_APPLICABLE, "task_not_run", "The segmentation that this is measured from was not run."),
        (Status.NOT_APPLICABLE, "a_reason_of_a_later_version", "A reason of a later version."),
        (Status.INCOMPLETE_FOV, "border_superior", "The structure reaches the superior edge of the scan"),
        (Status.GATED, "brain_not_verified", "Whether the whole brain is in the image could not be checked."),
        (Status.ERROR, "measurement_failed", "The measurement stopped at a defect of this software."),
        (Status.LABEL_ABSENT, "label_absent", "The model did not find the structure"),
        (Status.INSUFFICIENT_ROI, "too_few_voxels", "Too few voxels."),
        (Status.LEVEL_UNCERTAIN, "level", "Level."),
    ],
)
def test_a_head_of_which_nobody_looked_for_blood_is_not_routine(status: Status, reason: str, words: str):
    found = assess((LIVER, _measurement(ICH, None, status, reason=reason)))
    assert (found.urgency, found.findings) == (None, ())
    assert found.reason.startswith(f"No AI urgency: Intracranial hemorrhage could not be judged. {words}")


def test_why_there_is_no_urgency_is_told_in_words_for_a_reader():
    sides = ("brain_border_left", "brain_border_inferior", "brain_border_anterior")
    cut = replace(_measurement(ICH, None, Status.INCOMPLETE_FOV), reasons=sides)
    found = assess((LIVER, cut))
    assert found.reason == (
        "No AI urgency: Intracranial hemorrhage could not be judged. "
        "The brain reaches the left and anterior edges of the scan: a part of it may be missing."
    )
    assert "_" not in found.reason


def test_where_ai_ran_and_measured_nothing_it_is_not_called_unavailable():
    found = assess((_measurement("liver_volume", None, Status.LABEL_ABSENT),))
    assert found.reason == "No AI urgency: AI ran, but no number came out of it. The ordered priority stands."


@pytest.mark.parametrize("regions", [0.0, 2.0])
def test_where_only_the_regions_are_known_it_does_not_say_that_there_is_no_number(regions: float):
    known = Measurement("body_regions", regions, "1", Status.OK, Provenance("body_regions", 1))
    found = assess((known, _measurement("liver_volume", None, Status.LABEL_ABSENT)))
    assert found.urgency is None
    assert found.reason == (
        "No AI urgency: AI told which body regions the scan shows, and no other number came out of it. "
        "The ordered priority stands."
    )


def test_knowing_which_region_was_scanned_is_no_measurement():
    regions = Measurement("body_regions", 1.0, "1", Status.OK, Provenance("body_regions", 1))
    absent = _measurement(ICH, None, Status.NOT_APPLICABLE, reason="anatomy_absent")
    assert assess((regions, absent)).urgency is None
    assert assess((regions, absent, LIVER)).urgency is Urgency.P3


def test_an_implausible_amount_is_left_to_people():
    assert assess((LIVER, _measurement(ICH, 900.0, Status.IMPLAUSIBLE, largest_component_ml=900.0))).urgency is None


def test_nothing_measured_gives_no_urgency():
    assert assess(()).urgency is None
    assert assess((_measurement("liver_volume", None, Status.NOT_APPLICABLE),)).urgency is None


@pytest.mark.parametrize("reason", ["anatomy_absent", "brain_not_in_field", "modality", "not_ct"])
def test_an_image_without_a_head_or_of_another_modality_is_routine(reason: str):
    absent = _measurement(ICH, None, Status.NOT_APPLICABLE, reason=reason)
    assert assess((LIVER, absent)).urgency is Urgency.P3


def test_a_finding_from_synthetic_weights_says_so():
    (finding,) = assess((_measurement(ICH, 9.0, synthetic=True, largest_component_ml=9.0),)).findings
    assert finding.synthetic


@given(
    st.lists(
        st.tuples(st.sampled_from([ICH, "liver_volume", "spleen_volume"]), st.floats(0, 1e4), st.floats(0, 1e4)),
        max_size=5,
    ),
    st.floats(0, 1e4),
    st.floats(0, 1e4),
)
def test_one_more_measured_number_never_lowers_the_urgency(
    before: list[tuple[str, float, float]], total_ml: float, largest_ml: float
):
    measurements = [_measurement(name, value, largest_component_ml=largest) for name, value, largest in before]
    old = assess(measurements)
    new = assess([*measurements, _measurement(ICH, total_ml, largest_component_ml=largest_ml)])
    assert new.urgency is not None
    assert old.urgency is None or new.urgency.value <= old.urgency.value


def test_the_rule_table_is_versioned_and_cited():
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(rule.version >= 1 and rule.citation and rule.unit for rule in RULES)


def test_triage_and_catalog_mean_the_same_classes():
    assert [(one.value, one.word) for one in Urgency] == [(one.value, one.word) for one in CatalogUrgency]


def test_a_region_that_was_not_measured_forbids_routine():
    elsewhere = replace(LIVER, provenance=replace(LIVER.provenance, image_flags="tilt:3.0,region_not_measured:head"))
    found = assess((elsewhere,))
    assert found.urgency is None
    assert "No AI urgency" in found.reason and "Not measured: head." in found.reason
    assert assess((replace(LIVER, provenance=replace(LIVER.provenance, image_flags="tilt:3.0")),)).urgency is Urgency.P3
    blood = _measurement(ICH, 31.0, largest_component_ml=30.0)
    assert assess((elsewhere, blood)).urgency is Urgency.P0
