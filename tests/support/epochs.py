"""Whether studies were closed when they should have been, read from what the catalog kept: rows, senders, history.

An epoch is closed once, after the quiet that its senders' end asks for, and holds every image that came until then. A
further epoch is right only where its first image came after that quiet was over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import Session, select

from heimdallr_ray.catalog.closing import manifest_sha256
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.tables import AssociationRow, EventRow, InstanceRow, JobRow, StudyRow


@dataclass(frozen=True)
class Image:
    """One row."""

    epoch: int
    received_at: datetime
    association_id: str


@dataclass(frozen=True)
class Story:
    """One study, as it was told when all was over."""

    study_uid: str
    state: str
    epoch: int
    images: tuple[Image, ...]
    closings: tuple[tuple[int, datetime], ...]
    """Epoch and time of each time that it was queued."""
    jobs: tuple[int, ...]
    """Epochs, one for each job."""
    manifest_is_whole: bool
    """True where the digest that the last closing kept is that of all images there are."""


def stories(session: Session) -> tuple[list[Story], dict[str, datetime | None]]:
    """Every study, and of every association when it ended."""
    images: defaultdict[str, list[Image]] = defaultdict(list)
    for row in session.exec(select(InstanceRow)).all():
        images[row.study_id].append(Image(row.epoch, row.received_at, row.association_id or ""))
    closings: defaultdict[str | None, list[tuple[int, datetime]]] = defaultdict(list)
    for event in session.exec(select(EventRow).where(EventRow.kind == "study.state").order_by("id")).all():
        if event.new == StudyState.QUEUED.value:
            closings[event.study_id].append((int(event.payload["epoch"]), event.at))
    jobs: defaultdict[str | None, list[int]] = defaultdict(list)
    for job in session.exec(select(JobRow)).all():
        jobs[job.study_id].append(job.epoch)
    told = [
        Story(
            row.study_uid,
            row.state,
            row.epoch,
            tuple(images[row.id]),
            tuple(closings[row.id]),
            tuple(sorted(jobs[row.id])),
            row.manifest_sha256 == manifest_sha256(session, row.id),
        )
        for row in session.exec(select(StudyRow)).all()
    ]
    return told, {row.id: row.closed_at for row in session.exec(select(AssociationRow)).all()}


def faults(story: Story, ended: Mapping[str, datetime | None], wait_s: float, store_s: float) -> list[str]:
    """What is wrong with how the study was closed; nothing where all is right.

    Args:
        story: of the study.
        ended: when each association ended.
        wait_s: the least quiet that closes a study here.
        store_s: the longest that a C-STORE took. An image is dated by its beginning, and its study is held open from
            its end on.
    """
    epochs = list(range(1, story.epoch + 1))
    found: list[str] = []
    if story.state != StudyState.QUEUED.value:
        found.append(f"is {story.state}")
    if [epoch for epoch, _ in story.closings] != epochs:
        found.append(f"was closed for the epochs {[epoch for epoch, _ in story.closings]} instead of {epochs}")
    if list(story.jobs) != epochs:
        found.append(f"has jobs for the epochs {list(story.jobs)} instead of {epochs}")
    if sorted({image.epoch for image in story.images}) != epochs:
        found.append("has an epoch without an image, or an image without an epoch")
    if not story.manifest_is_whole:
        found.append("was closed without some of its images")
    for epoch, closed_at in story.closings:
        quiet_from = _quiet_from([image for image in story.images if image.epoch <= epoch], ended)
        if quiet_from is None:
            found.append(f"epoch {epoch}: an association that sent to it has no end")
            continue
        if closed_at < quiet_from + timedelta(seconds=wait_s):
            found.append(f"epoch {epoch}: closed {(closed_at - quiet_from).total_seconds():.3f} s after it was quiet")
        later = [image.received_at for image in story.images if image.epoch > epoch]
        if later and min(later) < quiet_from + timedelta(seconds=wait_s - store_s):
            after_s = (min(later) - quiet_from).total_seconds()
            found.append(f"epoch {epoch}: split, the next image came {after_s:.3f} s after it was quiet")
    return [f"{story.study_uid} {fault}" for fault in found]


def waits_s(story: Story, ended: Mapping[str, datetime | None]) -> list[float]:
    """How long after it was quiet each epoch was closed."""
    quiet = [_quiet_from([one for one in story.images if one.epoch <= epoch], ended) for epoch, _ in story.closings]
    return [
        (at - since).total_seconds() for (_, at), since in zip(story.closings, quiet, strict=True) if since is not None
    ]


def _quiet_from(images: Sequence[Image], ended: Mapping[str, datetime | None]) -> datetime | None:
    """The last image, or the last end of an association that sent one, whichever was later; None where one has none."""
    ends = [ended.get(image.association_id) for image in images]
    known = [end for end in ends if end is not None]
    if len(known) < len(ends) or not images:
        return None
    return max(*known, *(image.received_at for image in images))
