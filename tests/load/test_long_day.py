"""Images and jobs for minutes on end: nothing is lost, urgent work goes first, memory and descriptors do not grow."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlmodel import col, select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import JobRow, StudyRow
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.queue.lease import LeaseQueue
from tests.support.fsyncs import Fsyncs, fsyncs_beside, percentile
from tests.support.intake import Intake, sha256, wait_for
from tests.support.listeners import ListenerProcess, running
from tests.support.rawimages import image, sop_uid
from tests.support.server import serving_intake
from tests.support.wirepeer import WirePeer

pytestmark = pytest.mark.alone

ROOT = "1.2.826.0.1.3680043.9.9.40"
ASSOCIATIONS, WORKERS = 4, 2
IDLE_S = 2.0


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seconds: float
    images: int
    routine: int
    urgent: int
    work_s: float
    """A worker of the fake engine takes so long for one study."""
    images_per_study: int = 50


class FakeEngine:
    """Workers that claim studies, do nothing for a while and finish them; each notes when it was free."""

    def __init__(self, database: Database, work_s: float) -> None:
        self._queue = LeaseQueue(database, SystemClock(), 60.0)
        self._database, self._work_s = database, work_s
        self._ended = threading.Event()
        self.began: dict[str, float] = {}
        """Study id to when a worker had it."""
        self.freed: list[float] = []
        self.finished = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(f"engine{n}",)) for n in range(WORKERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _work(self, owner: str) -> None:
        while not self._ended.is_set():
            lease = self._queue.claim(owner, ["study"])
            if lease is None:
                self._ended.wait(0.1)
                continue
            with self._lock:
                self.began[lease.key] = time.monotonic()
            self._ended.wait(self._work_s)
            with self._database.write() as session:
                self._queue.finish(session, lease)
            with self._lock:
                self.finished += 1
                self.freed.append(time.monotonic())

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)


class Modality(threading.Thread):
    """Sends its share evenly over the day, on one association that stays open."""

    def __init__(self, port: int, number: int, plan: Plan) -> None:
        super().__init__()
        self.number, self.plan, self._port = number, plan, port
        self.stores: list[tuple[float, float]] = []
        """When each began and was answered."""
        self.sent: dict[str, str] = {}
        self.statuses: set[int] = set()

    def run(self) -> None:
        count = self.plan.images // ASSOCIATIONS
        pause_s = self.plan.seconds / count
        began = time.monotonic()
        with WirePeer(self._port, calling=f"CT{self.number}") as peer:
            for n in range(count):
                time.sleep(max(0.0, began + n * pause_s - time.monotonic()))
                study = f"{ROOT}.{self.number + 1}.{n // self.plan.images_per_study}"
                body, sop = image(study, n + 1), sop_uid(study, n + 1)
                sending = time.monotonic()
                self.statuses.add(peer.store(body, sop))
                self.stores.append((sending, time.monotonic()))
                self.sent[sop] = sha256(body)
            time.sleep(max(0.0, began + self.plan.seconds - time.monotonic()))


class Watcher(threading.Thread):
    """Looks at the listener, and at what the API tells of the queue, once a second."""

    def __init__(self, listener: ListenerProcess, database: Database, url: str) -> None:
        super().__init__()
        self._listener, self._database, self._url = listener, database, url
        self._ended = threading.Event()
        self.samples: list[tuple[float, float, int]] = []
        """When (s), resident size (MiB), open files."""
        self.gauges: list[tuple[dict[str, int], dict[str, int]]] = []
        """What the API told of the jobs that wait and run, and the rows, where these were the same before and after."""

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while not self._ended.wait(1.0):
                self.samples.append((time.monotonic(), self._listener.rss_mib(), self._listener.open_files()))
                before = jobs_by_state(self._database)
                told = client.get(f"{self._url}/api/v1/status").raise_for_status().json()["jobs"]
                if before == jobs_by_state(self._database):
                    self.gauges.append(({state: told[state] for state in before}, before))

    def stop(self) -> None:
        self._ended.set()
        self.join(30)

    def open_files_by_part(self, parts: int) -> list[float]:
        """The median of each of so many equal parts: what is open for the moment of one image does not count."""
        size = len(self.samples) // parts
        return [statistics.median(n for _, _, n in self.samples[k * size : (k + 1) * size]) for k in range(parts)]

    def slope_mib_per_min(self, after_s: float) -> float:
        """Of the resident size, by least squares, once `after_s` have passed."""
        start = self.samples[0][0] + after_s
        seen = [(at / 60, size) for at, size, _ in self.samples if at >= start]
        return statistics.linear_regression([at for at, _ in seen], [size for _, size in seen]).slope


def jobs_by_state(database: Database) -> dict[str, int]:
    """Rows that wait and rows that run, one by one."""
    with database.read() as session:
        states = session.exec(select(JobRow.state)).all()
    return {state: states.count(state) for state in ("queued", "running")}


def counted(url: str, name: str) -> float:
    """A figure of `/metrics`, over all its labels."""
    text = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).raise_for_status().text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"heimdallr_intake_{name}{{"))


def send_small_study(port: int, study: str, priority: str = "") -> None:
    with WirePeer(port, calling="ROUTINE") as peer:
        assert peer.store(image(study, 1, 16, priority=priority), sop_uid(study, 1)) == 0


def urgent_waits(port: int, database: Database, engine: FakeEngine, plan: Plan) -> list[float]:
    """For each urgent study, the seconds between the first free worker after its queueing and its start."""
    waits: list[float] = []
    for n in range(plan.urgent):
        time.sleep(plan.seconds / (2 * plan.urgent))
        study_uid = f"{ROOT}.99.{n}"
        send_small_study(port, study_uid, "STAT")

        def queued_at(uid: str = study_uid) -> tuple[str, float] | None:
            with database.read() as session:
                study = session.exec(select(StudyRow).where(col(StudyRow.study_uid) == uid)).one_or_none()
                known = study and session.exec(select(JobRow).where(col(JobRow.study_id) == study.id)).one_or_none()
            return (known.key, time.monotonic()) if known else None

        key, seen = wait_for(queued_at, 60, "the urgent study to be queued")
        wait_for(lambda key=key: key in engine.began, 60 + 2 * plan.work_s, "the urgent study to start")
        free = min((at for at in engine.freed if at > seen), default=seen)
        waits.append(max(0.0, engine.began[key] - max(seen, free)))
    return waits


def long_day(folder: Path, plan: Plan) -> tuple[list[Modality], Watcher, list[float], Fsyncs]:
    """The day, and what has to hold of each, however short."""
    with running(folder / "data", idle_s=IDLE_S) as listener, serving_intake(Intake(folder / "data")) as url:
        intake = Intake(folder / "data")
        engine = FakeEngine(intake.database, plan.work_s)
        for n in range(plan.routine):
            send_small_study(listener.port, f"{ROOT}.98.{n}")
        wait_for(lambda: len(intake.jobs()) == plan.routine, 120, "the routine studies to be queued")
        modalities = [Modality(listener.port, number, plan) for number in range(ASSOCIATIONS)]
        watcher = Watcher(listener, intake.database, url)
        with fsyncs_beside(folder, 0.25) as fsyncs:
            for modality in modalities:
                modality.start()
            engine.start()
            watcher.start()
            waits = urgent_waits(listener.port, intake.database, engine, plan)
            for modality in modalities:
                modality.join(plan.seconds + 120)
        watcher.stop()
        studies = plan.routine + plan.urgent + sum(-(-len(one.sent) // plan.images_per_study) for one in modalities)
        wait_for(lambda: len(intake.jobs()) == studies, 120, "all studies to be queued")
        wait_for(lambda: engine.finished == studies, 60 + studies * plan.work_s, "all studies to be worked on")
        engine.stop()
        wait_for(lambda: intake.spooled() == [], 60, "the spool to be empty")
        status = listener.status()
        received = plan.images + plan.routine + plan.urgent
        for figure in ("instances_total", "committed_total"):
            wait_for(lambda name=figure: counted(url, name) == received, 20, f"{figure} to be {received}")
    assert status["errors"] == {}
    sent = {sop: digest for one in modalities for sop, digest in one.sent.items()}
    assert len(sent) == plan.images
    assert set().union(*(one.statuses for one in modalities)) == {0}
    stored = intake.stored()
    assert {sop: stored.get(sop) for sop in sent} == sent
    assert len(stored) == received
    assert {job.state for job in intake.jobs()} == {"done"}
    assert len(watcher.gauges) > 2 and all(told == rows for told, rows in watcher.gauges), watcher.gauges
    assert max(waits) <= 2, waits
    files = watcher.open_files_by_part(5)
    assert max(files) - min(files) <= 5, files
    return modalities, watcher, waits, fsyncs


def told(modalities: list[Modality], waits: list[float], fsyncs: Fsyncs) -> float:
    """The p99 of C-STORE in seconds, of all images; printed beside what the disk itself took meanwhile."""
    took = [end - began for one in modalities for began, end in one.stores]
    p99 = percentile(took, 0.99)
    print(
        f"C-STORE of 525 kB p50 {1000 * percentile(took, 0.5):.0f} ms, p99 {1000 * p99:.0f} ms; "
        f"write + fsync beside it p99 {1000 * percentile(fsyncs.took_s, 0.99):.0f} ms; "
        f"urgent studies waited at most {max(waits):.2f} s"
    )
    return p99


@pytest.mark.timeout(280)
def test_a_moment_of_a_long_day(on_disk: Path) -> None:
    """Check 40 of the reliability list, 10 s of it, without the lines on speed and slope."""
    plan = Plan(seconds=10, images=120, routine=8, urgent=2, work_s=0.5, images_per_study=40)
    modalities, watcher, waits, fsyncs = long_day(on_disk, plan)
    told(modalities, waits, fsyncs)
    assert watcher.samples[-1][1] - watcher.samples[5][1] < 16


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_minutes_of_a_long_day(on_disk: Path) -> None:
    """Check 40 of the reliability list: 10 min, 4 associations, 4,000 images of 525 kB, 200 routine studies queued."""
    plan = Plan(seconds=600, images=4000, routine=200, urgent=5, work_s=3.0)
    modalities, watcher, waits, fsyncs = long_day(on_disk, plan)
    p99 = told(modalities, waits, fsyncs)
    slope = watcher.slope_mib_per_min(120)
    print(f"resident size {watcher.samples[-1][1]:.0f} MiB, slope {slope:+.2f} MiB/min")
    assert slope < 1
    assert p99 <= 0.25
