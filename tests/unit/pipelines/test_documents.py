from __future__ import annotations

import json
from dataclasses import replace

import pytest

from heimdallr_ray.metrics.catalogue import measure_all
from heimdallr_ray.metrics.result import Measurement, Status
from heimdallr_ray.pipelines.documents import (
    NOTICE,
    RESULTADOS_KEYS,
    SeriesDecision,
    SkippedTask,
    StudyFacts,
    body_regions_of,
    id_document,
    resultados_document,
    results_document,
    to_bytes,
)
from heimdallr_ray.triage.urgency import Assessment, assess
from tests.unit.metrics.builders import by_id, head, model, torso

STUDY = StudyFacts(
    "a" * 32, "1.2.3", patient_id="P1", patient_name="DOE^JANE", patient_birth_date="19700101", modality="CT"
)
SERIES = (
    SeriesDecision("1.2.3.4", chosen=True, reason="thinnest complete axial series", details={"score": 12.5}),
    SeriesDecision("1.2.3.5", chosen=False, reason="localizer", reject_code="localizer"),
)


STEP = {"task": "total_fast", "model_id": "totalsegmentator/297", "failed": "whole", "taken": "cpu_parts"}


def _results(
    measurements: tuple[Measurement, ...], *, synthetic: bool = False, assessment: Assessment | None = None
) -> dict:
    return results_document(
        study=STUDY,
        measurements=measurements,
        assessment=assessment or assess(measurements),
        series=SERIES,
        models=(model("total"),),
        skipped_tasks=(SkippedTask("tissue_types", "licence", "needs a licence"),),
        memory_steps=(STEP,),
        stage_seconds={"segment": 4.25},
        software_version="0.1.0",
        synthetic=synthetic,
        volume_facts={"shape": [10, 10, 10]},
    )


def test_results_hold_numbers_reasons_findings_selection_models_and_times():
    measurements = measure_all(head((15.0,)).context())
    found = json.loads(to_bytes(_results(measurements)))
    assert found["schema"] == "heimdallr/results/1"
    assert found["urgency"]["class"] == "P0"
    assert found["urgency"]["word"] == "CRITICAL"
    assert found["findings"][0]["rule_id"] == "ich-any"
    assert found["findings"][0]["urgency"] == "P0"
    assert found["body_regions"] == ["head"]
    assert found["selection"][1]["reject_code"] == "localizer"
    assert found["models"][0]["model_id"] == "totalsegmentator/total"
    assert found["skipped_tasks"] == [{"task": "tissue_types", "reason": "licence", "detail": "needs a licence"}]
    assert found["memory_steps"] == [STEP]
    assert found["stage_seconds"] == {"segment": 4.25}
    assert (found["synthetic"], "notice" in found) == (False, False)
    liver = next(one for one in found["measurements"] if one["id"] == "liver_volume")
    assert (liver["value"], liver["status"], liver["reasons"]) == (None, "label_absent", ["label_absent"])
    assert liver["provenance"]["definition_id"] == "liver_volume"


def test_results_carry_no_name_and_no_birth_date():
    data = to_bytes(_results(measure_all(torso().context())))
    assert b"DOE" not in data
    assert b"19700101" not in data


def test_ai_that_failed_has_no_urgency():
    found = _results((), assessment=Assessment(None, (), "AI not available"))
    assert (found["urgency"]["class"], found["urgency"]["word"]) == (None, None)


def test_resultados_has_the_originals_keys_and_null_where_there_is_no_number():
    measurements = measure_all(torso().context())
    found = resultados_document(measurements, body_regions_of(measurements), "CT", synthetic=False)
    assert set(found) == {*RESULTADOS_KEYS, "body_regions", "modality", "schema", "synthetic"}
    assert found["liver_vol_cm3"] == pytest.approx(576.0)
    assert found["muscle_HU_mean"] == by_id(measurements)["l3_muscle_attenuation"].value
    assert found["hemorrhage_vol_cm3"] is None, "no brain in the field"
    assert found["body_regions"] == ["abdomen"]
    assert found["modality"] == "CT"


def test_a_measured_zero_stays_zero():
    measurements = measure_all(head().context())
    assert resultados_document(measurements, (), "CT", synthetic=False)["hemorrhage_vol_cm3"] == 0.0


def test_an_implausible_number_does_not_pass_for_a_good_one():
    liver = by_id(measure_all(torso().context()))["liver_volume"]
    odd = replace(liver, status=Status.IMPLAUSIBLE, reasons=("implausible",))
    assert resultados_document((odd,), (), "CT", synthetic=False)["liver_vol_cm3"] is None


def test_synthetic_is_said_in_every_document_wherever_it_comes_from():
    measurements = measure_all(torso().context())
    marked = tuple(replace(one, provenance=replace(one.provenance, synthetic=True)) for one in measurements)
    for document in (
        id_document(STUDY, SERIES, software_version="0.1.0", synthetic=True),
        _results(measurements, synthetic=True),
        _results(marked),
        resultados_document(measurements, (), "CT", synthetic=True),
        resultados_document(marked, (), "CT", synthetic=False),
    ):
        assert (document["synthetic"], document["notice"]) == (True, NOTICE)


def test_id_says_who_the_study_is_and_which_series_was_used():
    found = json.loads(to_bytes(id_document(STUDY, SERIES, software_version="0.1.0", synthetic=False)))
    assert found["patient"] == {"id": "P1", "name": "DOE^JANE", "birth_date": "19700101", "sex": None}
    assert found["study"]["study_uid"] == "1.2.3"
    assert not any(key.startswith("patient") for key in found["study"])
    assert found["chosen_series_uid"] == "1.2.3.4"


def test_bytes_are_canonical_utf8_and_refuse_nan():
    assert to_bytes({"b": 1, "a": "Müller ≥"}) == '{\n  "a": "Müller ≥",\n  "b": 1\n}\n'.encode()
    assert to_bytes(_results(measure_all(torso().context()))) == to_bytes(_results(measure_all(torso().context())))
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_bytes({"value": float("nan")})
