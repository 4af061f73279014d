"""How an association ends decides how long its study waits: with a real sender, on both backends."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.tables import AssociationRow
from tests.contract.listener.conftest import LONG, MakeIntake
from tests.support.intake import Intake, storescu, wait_for, write_study

LONG_S, SHORT_S = 60.0, 0.5


def associations(intake: Intake) -> list[AssociationRow]:
    with intake.database.read() as session:
        return list(session.exec(select(AssociationRow)).all())


@LONG
@pytest.mark.parametrize(("option", "how"), [("", "released"), ("--abort", "aborted")])
def test_a_release_closes_soon_and_an_abort_waits(
    make_intake: MakeIntake, tmp_path: Path, option: str, how: str
) -> None:
    intake = make_intake(
        tmp_path / "data",
        idle_seconds=LONG_S,
        settle_after_release_seconds=SHORT_S,
        settle_after_abort_seconds=LONG_S,
    )
    paths = write_study(tmp_path / "study", 3)
    with intake.listening() as service:
        storescu(service.scp.port, paths, "-aet", "CT1", *([option] if option else []))
        (row,) = wait_for(
            lambda: [one for one in associations(intake) if one.closed_at is not None], 20, "the association to end"
        )
        assert (row.how, row.door, row.calling_ae, row.called_ae) == (how, "dicom", "CT1", "HEIMDALLR")
        assert row.stored == 3
        if how == "released":
            (study,) = wait_for(lambda: [one for one in intake.studies() if one.closed_at], 20, "the study to close")
            assert (study.state, study.close_code) == ("queued", "idle_after_release")
        else:
            (study,) = wait_for(
                lambda: [one for one in intake.studies() if one.state == "settling"], 20, "the study to settle"
            )
            assert (study.close_code, study.closed_at) == ("idle_after_abort", None)
            assert study.closes_at is not None
            assert LONG_S - 10 < (study.closes_at - intake.clock.now()).total_seconds() < LONG_S + 1
