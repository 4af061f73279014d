"""Images that share a SOP Instance UID and not their bytes: counted by study, told with who sent them."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text

from heimdallr_ray.catalog.conflicts import contested, contested_images, contested_uids
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.studies import record_instances, study_by_uid
from tests.support.clock import EPOCH
from tests.support.studies import received


def test_they_are_counted_by_study_and_told_one_by_one(database: Database) -> None:
    later = EPOCH + timedelta(seconds=5)
    with database.write() as session:
        record_instances(session, [received(n, study=number) for number in (1, 2) for n in (1, 2, 3)], EPOCH)
    with database.read() as session:
        assert contested(session, 10).images == 0
    with database.write() as session:
        # The second image once more with other bytes, from somebody else; and the first one as it was.
        other = received(2, content="other", spool="b", at=later, association="b1", ae="CT_2", address="192.0.2.9")
        record_instances(session, [other, received(1, spool="c", at=later)], later)
    with database.read() as session:
        studies = [study_by_uid(session, f"1.2.{number}") for number in (1, 2)]
        ids = [study.id for study in studies if study is not None]
        assert contested_uids(session, ids) == {ids[0]: 1}
        images = contested_images(session, ids[0])
        assert contested_images(session, ids[1]) == []
        found = contested(session, 10)
    assert [(one.study_uid, one.calling_ae, one.address) for one in images] == [
        ("1.2.1", "SCANNER", None),
        ("1.2.1", "CT_2", "192.0.2.9"),
    ]
    assert len({one.sop_uid for one in images}) == 1 and len({one.sha256 for one in images}) == 2
    assert (found.uids, found.images, found.n_studies, found.studies) == (1, 2, 1, (("1.2.1", 1),))


def test_a_page_of_the_worklist_asks_by_an_index(database: Database) -> None:
    with database.read() as session:
        if session.get_bind().dialect.name != "sqlite":
            return
        plan = session.connection().execute(
            text(
                "EXPLAIN QUERY PLAN SELECT study_id, count(DISTINCT sop_uid) FROM instance "
                "WHERE study_id IN ('a', 'b') AND sop_uid_conflict IS 1 GROUP BY study_id"
            )
        )
        assert "ix_instance_conflict" in str(plan.all())
