"""`heimdallr demo`: two synthetic studies over a real association through the whole stack, in a temporary folder."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import httpx

from heimdallr_ray import logs
from heimdallr_ray.catalog.states import TERMINAL
from heimdallr_ray.clients.send import send_folder
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings, load
from heimdallr_ray.errors import HeimdallrError, NotReady
from heimdallr_ray.ids import new_id
from heimdallr_ray.operations import ports
from heimdallr_ray.operations.demo_studies import DemoStudy, write_demo_study
from heimdallr_ray.operations.supervisor import Progress, Supervisor

log = logging.getLogger(__name__)

LABELS = ("chest-abdomen", "head-bleed")
STUDY_S = 900.0
"""A study that is not finished by then has failed."""
POLL_S = 0.25


PASSED_ON = ("server_port", "dicom_port", "device", "torch_threads", "object_store_mib", "log_level")
"""Settings that the demo takes from the environment. Nothing else: a demo must not meet a site's database or models."""


def demo_settings(data_dir: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """The demo profile: loopback, short idle time, SQLite in `data_dir`, ports that do not disturb another stack."""
    env = os.environ if environ is None else environ
    server, dicom = ports.pick_free(2)
    values: dict[str, Any] = {
        "server_port": 8001 if ports.is_free(8001) else server,
        "dicom_port": 11112 if ports.is_free(11112) else dicom,
        "idle_seconds": 2.0,
        "settle_after_abort_seconds": 2.0,
        "scan_seconds": 0.5,
        "ray_port": 0,
        "ray_dashboard_port": 0,
        "ray_agent_port": 0,
        "ray_client_port": 0,
        "ray_metrics_port": 0,
        "ray_worker_ports": "",
    }
    for name in PASSED_ON:
        values[name] = env.get(f"HEIMDALLR_{name.upper()}") or values.get(name)
    return load({}, None, profile="demo", data_dir=data_dir, **values)


class Follower:
    """Tells each change of some studies, stage by stage, until all are finished."""

    def __init__(self, url: str, progress: Progress, transport: httpx.BaseTransport | None = None) -> None:
        """`url` of the running stack."""
        # trust_env: a proxy of the site has no business with loopback.
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=10.0, trust_env=False, transport=transport)
        self._progress = progress

    def follow(self, *studies: DemoStudy) -> list[dict[str, Any]]:
        """The finished studies, in the order in which they were given; all are looked at side by side.

        Raises:
            NotReady: one did not finish within its bound.
        """
        deadline = time.monotonic() + STUDY_S
        said: dict[str, str] = {}
        finished: dict[str, dict[str, Any]] = {}
        while time.monotonic() < deadline:
            for study in studies:
                if study.study_uid in finished or (detail := self._detail(study)) is None:
                    continue
                row = detail["study"]
                now = row["state"] + (f": {row['step']}" if row["step"] else "")
                if now != said.get(study.study_uid):
                    reason = f" ({row['reason']})" if row["reason"] else ""
                    self._progress(f"{study.label}: {now}{reason}")
                    said[study.study_uid] = now
                if row["state"] in TERMINAL:
                    finished[study.study_uid] = detail
            if len(finished) == len(studies):
                return [finished[study.study_uid] for study in studies]
            time.sleep(POLL_S)
        late = ", ".join(study.label for study in studies if study.study_uid not in finished)
        raise NotReady(f"{late} was not finished within {STUDY_S:.0f} s")

    def _detail(self, study: DemoStudy) -> dict[str, Any] | None:
        """What the API says of the study; None where it does not know it yet.

        Raises:
            NotReady: another answer.
        """
        answer = self._client.get(f"/studies/{study.study_uid}")
        if answer.status_code not in (200, 404):
            raise NotReady(f"the API answers {answer.status_code}: {answer.text[:200]}")
        return cast(dict[str, Any], answer.json()) if answer.status_code == 200 else None

    def worklist(self) -> list[str]:
        """Study UIDs in the order of the worklist."""
        page = cast(dict[str, Any], self._client.get("/studies").raise_for_status().json())
        return [row["study_uid"] for row in page["studies"]]

    def results(self, study: DemoStudy) -> dict[str, Any]:
        """The study's results.json."""
        return cast(dict[str, Any], self._client.get(f"/studies/{study.study_uid}/results").raise_for_status().json())


def stages_of(detail: dict[str, Any], results: dict[str, Any]) -> dict[str, float | None]:
    """Seconds of each stage of a finished study, from the rows that the stack itself wrote.

    `receive` first to last image, `settle` idle wait, `wait` in the queue, then the steps; `forward` is the part of
    `segment` inside the networks; `commit` from the step's own beginning to the committed result, None where the
    history does not hold it; `after_close` is everything from closing to the committed result.
    """
    row = detail["study"]
    first, last, closed, done = (
        datetime.fromisoformat(row[name]) for name in ("first_received_at", "last_received_at", "closed_at", "done_at")
    )
    began = next(datetime.fromisoformat(event["at"]) for event in detail["history"] if event["new"] == "running")
    # The last one: a takeover commits under its own attempt.
    commits = [event["at"] for event in detail["history"] if (event["kind"], event["new"]) == ("study.step", "commit")]
    committing = max(map(datetime.fromisoformat, commits), default=None)
    steps = {name: float(seconds) for name, seconds in results["stage_seconds"].items()}
    return {
        "receive": round((last - first).total_seconds(), 3),
        "settle": round((closed - last).total_seconds(), 3),
        "wait": round((began - closed).total_seconds(), 3),
        **steps,
        "commit": None if committing is None else round((done - committing).total_seconds(), 3),
        "after_close": round((done - closed).total_seconds(), 3),
    }


def report_of(study: DemoStudy, detail: dict[str, Any], results: dict[str, Any] | None) -> dict[str, Any]:
    """One entry of the document that `--json` prints; `results` is None where the study is not done."""
    row = detail["study"]
    entry: dict[str, Any] = {
        "label": study.label,
        "study_uid": str(study.study_uid),
        "state": row["state"],
        "urgency": row["urgency"],
        "stages": {},
        "measurements": [],
        "artifacts": [artifact["name"] for artifact in detail["artifacts"]],
    }
    if results is None:
        return {**entry, "reason_code": row["reason_code"], "reason": row["reason"]}
    entry["stages"] = stages_of(detail, results)
    entry["measurements"] = [
        {
            "id": measurement["id"],
            "value": measurement["value"],
            "unit": measurement["unit"],
            "status": measurement["status"],
            "truth": study.truth.get(measurement["id"]),
        }
        for measurement in results["measurements"]
    ]
    return entry


def kept_words(keep: Path | None) -> str:
    """What becomes of the demo's data."""
    if keep is not None:
        return f"the data stays in {keep}"
    return "the data lies in a temporary folder that is removed then, --keep FOLDER keeps it"


@contextmanager
def _folder(keep: Path | None) -> Generator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
    else:
        with tempfile.TemporaryDirectory(prefix="heimdallr-demo-", ignore_cleanup_errors=True) as name:
            yield Path(name)


def run(clock: Clock, progress: Progress, *, once: bool, keep: Path | None = None) -> tuple[int, dict[str, Any]]:
    """Start the stack, send both studies, follow them; with `once` stop then, else wait for Ctrl-C.

    Returns the exit status and the document of `--json`.
    """
    with _folder(keep) as root:
        supervisor = Supervisor(demo_settings(root / "data"), clock, progress)
        logs.configure(supervisor.settings, "supervisor", console=True)
        try:
            supervisor.start()
            document = _studies(supervisor, root / "dicom", clock, progress)
            (root / "demo.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
            good = all(study["state"] == "done" for study in document["studies"])
            if not once:
                progress(f"worklist: {supervisor.url}   (Ctrl-C stops everything; {kept_words(keep)})")
                supervisor.wait()
        except HeimdallrError as error:
            progress(f"failed: {error.code}: {error.detail}")
            return 1, {"error": {"code": error.code, "detail": error.detail}}
        finally:
            left = supervisor.stop()
            if left:
                progress(f"processes that did not end: {left}")
            # The folder may go now.
            logs.close()
        return (0 if good else 1), document


def _studies(supervisor: Supervisor, root: Path, clock: Clock, progress: Progress) -> dict[str, Any]:
    settings, run_id = supervisor.settings, new_id()
    studies: list[DemoStudy] = []
    for label in LABELS:
        progress(f"{label}: painting the phantom")
        study = write_demo_study(label, root, clock.now(), run_id)
        progress(f"{label}: sending {study.n_files} images to {settings.ae_title}@127.0.0.1:{settings.dicom_port}")
        report = send_folder(study.folder, host="127.0.0.1", port=settings.dicom_port, called_ae=settings.ae_title)
        if report.failed:
            raise NotReady(f"{label}: {report.failed} of {study.n_files} images were not accepted")
        studies.append(study)
    follower = Follower(supervisor.url, progress)
    reports: dict[str, dict[str, Any]] = {}
    for study, detail in zip(studies, follower.follow(*studies), strict=True):
        results = follower.results(study) if detail["study"]["state"] == "done" else None
        reports[study.study_uid] = report_of(study, detail, results)
    return {"studies": [reports[uid] for uid in map(str, follower.worklist()) if uid in reports]}
