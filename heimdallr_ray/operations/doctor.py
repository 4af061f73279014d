"""`heimdallr doctor`: what stands in the way, and how to mend each thing."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import heimdallr_ray
from heimdallr_ray import logs
from heimdallr_ray.config import Settings, is_loopback, load_effective
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener import room as disk_room
from heimdallr_ray.listener.overview import watermarks
from heimdallr_ray.listener.room import RoomLevel
from heimdallr_ray.operations import accelerator, doors, failures, lock, mending, neighbours, ports, processes, rayhead
from heimdallr_ray.segmentation.notes import HOMES, read_notes, read_refusal

RAY_SERIES = "2.60."
RAY = "Ray port"
FIRST_STEP = "ports and weights"
"""What a supervisor looks at before the first step that it tells."""
PACKAGES = ("ray", "torch", "totalsegmentator", "nnunetv2", "pydicom", "pynetdicom", "nibabel", "sqlmodel", "fastapi")


MOST_NAMED = 8
"""Settings that are named; more are counted."""


@dataclass(frozen=True)
class Check:
    """One finding of the doctor."""

    name: str
    ok: bool
    detail: str
    mend: str = ""
    """What to do; empty where there is nothing to do."""

    @property
    def level(self) -> str:
        """`ok`; `mend`: something is in the way; `note`: nothing is, but there is something to know or to do."""
        if not self.ok:
            return "mend"
        return "note" if self.mend else "ok"

    def as_json(self) -> dict[str, Any]:
        """The finding for a program."""
        return {"level": self.level, **asdict(self)}


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_ports(settings: Settings) -> Iterator[Check]:
    """The ports are ours, or free."""
    held = lock.is_held(settings.run_dir)
    holder = lock.read_holder(settings.run_dir) if held else None
    silent = _closed_on_purpose(holder) if holder is not None else {}
    for name, host, port, variable in (
        (neighbours.HTTP, settings.server_host, settings.server_port, "HEIMDALLR_SERVER_PORT"),
        (neighbours.DICOM, settings.dicom_host, settings.dicom_port, "HEIMDALLR_DICOM_PORT"),
        (RAY, "127.0.0.1", settings.ray_port, "HEIMDALLR_RAY_PORT"),
    ):
        if port == 0:
            yield Check(name, True, "any free port")
            continue
        if held:
            at = ports.listeners({port})
            who = ", ".join(f"{one.process or 'unknown'} (pid {one.pid or '?'}) on {one.address}" for one in at)
            why = silent.get(name, "")
            absent = f"nobody listens{why or ' though a supervisor runs'}"
            yield Check(name, bool(at or why), f"{port}: {who or absent}",
                        "" if at or why else "heimdallr down, then heimdallr up; the logs say why")  # fmt: skip
        else:
            other = neighbours.holder_of(settings, name, host, port)
            yield Check(name, other is None, f"{port} is taken by {other.words}" if other else f"{port} is free",
                        f"{other.mend}, or set another port: {variable}" if other else "")  # fmt: skip


def _closed_on_purpose(holder: lock.Holder) -> dict[str, str]:
    """Why nobody may listen on a port by what the supervisor is doing, by the port's name."""
    every = (neighbours.HTTP, neighbours.DICOM, RAY)
    if holder.state == "starting":
        return dict.fromkeys(every, f" yet, {_starting(holder)}")
    if holder.state == "stopping":
        return dict.fromkeys(every, " any more, the stack is stopping")
    return {neighbours.DICOM: " any more, the stack is draining"} if holder.state == "draining" else {}


def _starting(holder: lock.Holder) -> str:
    return f"the stack is starting since {holder.started_at}, at the step: {holder.step or FIRST_STEP}"


def check_last_end(settings: Settings) -> Iterator[Check]:
    """The last stack of the data folder was not ended by its own failure, or another runs by now."""
    failed = None if lock.is_held(settings.run_dir) else failures.read(settings.run_dir)
    if failed is not None:
        yield Check("last start", False, f"the stack ended by itself: {failed.words}",
                    f"{settings.log_dir / 'supervisor.log'} has the rest; forgotten by the next `heimdallr up` that "
                    "is ready")  # fmt: skip


def check_listeners(settings: Settings) -> Iterator[Check]:
    """Every listening socket of the running stack; those that other machines can reach are named."""
    holder = lock.read_holder(settings.run_dir)
    if holder is None or not lock.is_held(settings.run_dir):
        yield Check("listeners", True, "no supervisor runs on this data folder")
        return
    pids = {holder.pid, *(process.pid for process in processes.descendants(holder.pid))}
    exposed: dict[str, list[str]] = {}
    for one in ports.listeners(pids=pids):
        ours = one.port in (settings.server_port, settings.dicom_port)
        reachable = not is_loopback(one.address.removeprefix("::ffff:"))
        who = f"{one.process} (pid {one.pid})"
        if reachable and not ours:
            exposed.setdefault(who, []).append(str(one.port))
        else:
            yield Check("listener", True, f"{one.address}:{one.port} {who}")
    if exposed:
        listed = "; ".join(f"{who} on {', '.join(numbers)}" for who, numbers in exposed.items())
        yield Check("listeners of Ray", True,
                    f"{sum(map(len, exposed.values()))} sockets that other machines can reach. They want the Ray "
                    f"token, but for the metrics port, which tells names and counts: {listed}",
                    "keep them behind the host's firewall: docs/operations/security.md")  # fmt: skip


def check_disk(settings: Settings) -> Iterator[Check]:
    """There is room by the measure of the doors, and the folder can be written."""
    folder = _existing(settings.data_dir)
    marks, room = watermarks(settings), disk_room.measure(folder)
    level = room.level(marks)
    found = f"{room.free_bytes >> 20} MiB free for {settings.data_dir}, {room.used_percent:.0f} % full"
    if level is RoomLevel.WARN:
        found += f"; from {marks.refuse_percent:g} % on images are refused"
    mend = ""
    if level is RoomLevel.REFUSE:
        mend = (
            f"free {max(1, -(room.headroom(marks) >> 20))} MiB; images are refused until then (disk_refuse_percent "
            f"{marks.refuse_percent:g}, min_free_mib {settings.min_free_mib})"
        )
    yield Check("disk", level is not RoomLevel.REFUSE, found, mend)
    writable = os.access(folder, os.W_OK)
    yield Check("data folder", writable, str(settings.data_dir),
                "" if writable else f"give this user write access: chown -R $(id -u) {folder}")  # fmt: skip


def check_log(settings: Settings) -> Iterator[Check]:
    """The log has a folder that takes it."""
    folder = settings.log_dir
    where = _existing(folder)
    if not where.is_dir():
        yield Check("log", False, f"{where} is no folder", f"move it away: mv {where} {where}.old")
        return
    unfit = [path for path in folder.glob(f"*{logs.SUFFIX}") if not path.is_file() or not os.access(path, os.W_OK)]
    at_fault = unfit[0] if unfit else where
    good = not unfit and os.access(where, os.W_OK | os.X_OK)
    kept_mib = settings.log_file_mib * settings.log_files
    yield Check("log", good, f"{folder}, {settings.log_level} and above, at most {kept_mib} MiB for each part" if good
                else f"{at_fault} cannot be written",
                "" if good else f"give this user write access: chown $(id -u) {at_fault}")  # fmt: skip


def check_database(settings: Settings) -> Iterator[Check]:
    """The database answers and has the schema of this version."""
    from heimdallr_ray.catalog.database import Database

    sqlite = settings.resolved_database_url.startswith("sqlite")
    if sqlite and not settings.database_url and not (settings.data_dir / "catalog.sqlite").exists():
        yield Check("database", True, "will be made by the first `heimdallr up`")
        return
    try:
        database = Database(settings.resolved_database_url)
        database.check()
        database.close()
    except HeimdallrError as error:
        yield Check("database", False, f"{error.code}: {error.detail}",
                    "check HEIMDALLR_DATABASE_URL; `heimdallr up` applies missing migrations")  # fmt: skip
    else:
        yield Check("database", True, "SQLite" if sqlite else "PostgreSQL")


def weights_dir_of(settings: Settings) -> Path:
    """The registry of models that these settings lead to."""
    from heimdallr_ray.segmentation.demo import weights_dir

    return settings.resolved_weights_dir or weights_dir()


def ran_as(run_dir: Path) -> str:
    """The profile of the stack that runs on a data folder or was the last to; empty where none did."""
    try:
        return load_effective(run_dir / "settings.json").profile
    except HeimdallrError:
        return ""


def check_profile(settings: Settings) -> Iterator[Check]:
    """Which profile is looked at, and how to look at the other where that is the one that ran here."""
    ran = ran_as(settings.run_dir)
    other = "site" if settings.profile == "demo" else "demo"
    if ran == other:
        yield Check("profile", True, f"{settings.profile} is looked at; the stack that ran here last was {other}",
                    f"heimdallr doctor --profile {other} looks at that")  # fmt: skip
    else:
        yield Check("profile", True, f"{settings.profile} is looked at; --profile {other} looks at the other")


def check_weights(settings: Settings) -> Iterator[Check]:
    """The model folders are there and unchanged."""
    from heimdallr_ray.pipelines.demand import demand_of
    from heimdallr_ray.segmentation import registry
    from heimdallr_ray.segmentation.planner import possible_too
    from heimdallr_ray.segmentation.weights import any_synthetic, verify

    folder = weights_dir_of(settings)
    try:
        weights = verify(folder)
        synthetic = any_synthetic(weights)
    except HeimdallrError as error:
        yield Check("weights", False, f"{folder} (profile {settings.profile}): {error.code}: {error.detail}",
                    mending.hint(settings))  # fmt: skip
        return
    wrong = synthetic and settings.profile != "demo"
    kind = "DEMO WEIGHTS" if synthetic else "real weights"
    yield Check("weights", not wrong, f"{folder} (profile {settings.profile}): {kind}, manifest holds",
                "profile `site` refuses synthetic weights: set HEIMDALLR_WEIGHTS_DIR" if wrong else "")  # fmt: skip
    demand = demand_of(settings.measurements)
    absent = registry.missing_needed(weights, demand)
    installed = registry.installed_tasks(weights)
    wanted = possible_too(demand, installed)
    if absent:
        what = (
            "not every measurement that this site names can be made" if demand.named else "no CT study can be measured"
        )
        yield Check("models", False, f"{', '.join(absent)} not installed: {what}",
                    registry.missing_words(absent, folder))  # fmt: skip
    elif wanted:
        yield Check("models", True, f"{len(installed)} tasks can run; {', '.join(wanted)} not installed, their "
                    "measurements are not_applicable", registry.missing_words(wanted, folder))  # fmt: skip
    else:
        yield Check("models", True, f"{len(installed)} tasks can run")


def check_series_rules(settings: Settings) -> Iterator[Check]:
    """The rules that choose the series are valid."""
    from heimdallr_ray.dicom.rules import load_rules

    name = "series rules"
    try:
        rules = load_rules(settings.series_rules)
    except HeimdallrError as error:
        yield Check(name, False, error.detail, "correct the file, or unset HEIMDALLR_SERIES_RULES")
        return
    where = "the package's own" if settings.series_rules is None else str(settings.series_rules)
    yield Check(name, True, f"{rules.file.rules_id} version {rules.file.version}, {rules.sha256[:12]}: {where}")


def check_completion(settings: Settings) -> Iterator[Check]:
    """When a study is complete, for everybody and for each source; malformed rules do not get as far as this."""
    from heimdallr_ray.operations.completion import completion_lines

    for name, words in completion_lines(settings.completion):
        yield Check(name, True, words)


def check_doors(settings: Settings) -> Iterator[Check]:
    """Who may send over DICOM, whether others can listen, and what Success promises."""
    for rule in doors.rules(settings):
        yield Check(rule.name, rule.ok, rule.words, rule.mend)


def check_asked(settings: Settings) -> Iterator[Check]:
    """The measurements and segmentations that the site names exist."""
    from heimdallr_ray.pipelines.steps import ever_wanted

    try:
        ever_wanted(settings.measurements, settings.segmentations)
    except HeimdallrError as error:
        yield Check("asked for", False, error.detail, "correct HEIMDALLR_MEASUREMENTS or HEIMDALLR_SEGMENTATIONS")
        return
    numbers = ", ".join(settings.measurements) or "all measurements"
    labels = f"; labels of {', '.join(settings.segmentations)}" if settings.segmentations else ""
    yield Check("asked for", True, f"{numbers}{labels}")


def check_device(settings: Settings) -> Iterator[Check]:
    """The accelerator: what the driver shows, and whether torch can use it."""
    found = accelerator.look()
    if found.usable:
        where = "; models run on the CPU" if settings.device == "cpu" else ""
        yield Check("GPU", True, f"torch can use {found.usable} of {found.present} NVIDIA device(s){where}")
    elif found.present:
        yield Check("GPU", settings.device != "cuda", f"{accelerator.unusable(found)}; models run on the CPU",
                    "install a driver that fits this torch, and let this user open /dev/nvidia*")  # fmt: skip
    else:
        missing = settings.device == "cuda"
        yield Check("GPU", not missing, "none; models run on the CPU",
                    "install the NVIDIA driver, or set HEIMDALLR_DEVICE=auto" if missing else "")  # fmt: skip
    memory_mib = psutil.virtual_memory().available // 2**20
    enough = memory_mib >= 4096
    yield Check("memory", enough, f"{memory_mib} MiB available",
                "" if enough else "the stack needs 4 GiB before the first study; close other programs")  # fmt: skip


def check_segmenter(settings: Settings) -> Iterator[Check]:
    """What the Segmenter replicas that run here say of their models, or why none became ready."""
    refused = read_refusal(settings.run_dir)
    if refused:
        yield Check("Segmenter", False, refused, "mend what it says, then: heimdallr down, heimdallr up")
    for words in dict.fromkeys(words for one in read_notes(settings.run_dir / HOMES) for words in one.notes):
        yield Check(
            "Segmenter", True, words, "see Exact and turbo, and A budget for the models, in docs/segmentation.md"
        )


def check_versions(_settings: Settings) -> Iterator[Check]:
    """Python and the packages whose version matters."""
    python = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Check("Python", good, python, "" if good else "use Python 3.11 or 3.12: make setup")
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, False, "not installed", "make setup")
    ray_ok = versions.get("ray", "").startswith(RAY_SERIES)
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Check("versions", ray_ok, f"heimdallr_ray {heimdallr_ray.__version__}; {listed}",
                "" if ray_ok else f"Ray must be {RAY_SERIES}*: make setup")  # fmt: skip


def check_ray_token(settings: Settings) -> Iterator[Check]:
    """The token that guards Ray is ours alone."""
    token = rayhead.places(settings).token_file
    if not token.exists():
        yield Check("Ray token", True, "will be made by the first `heimdallr up`")
        return
    private = not stat.S_IMODE(token.stat().st_mode) & 0o077
    yield Check("Ray token", private, f"{token}, mode {stat.S_IMODE(token.stat().st_mode):o}",
                "" if private else f"chmod 600 {token}; it is root on the cluster")  # fmt: skip


def check_audit_key(settings: Settings) -> Iterator[Check]:
    """The key of the audit chain is ours alone, and a copy of it is asked for."""
    from heimdallr_ray.security.audit_key import read_key

    path = settings.resolved_audit_key_file
    try:
        key = read_key(path)
    except FileNotFoundError:
        yield Check("audit key", True, "will be made by the first `heimdallr up`")
    except HeimdallrError as error:
        yield Check("audit key", False, error.detail, "docs/operations/audit.md; what others can read seals nothing")
    else:
        yield Check("audit key", True, f"{path}, id {key.id}; keep a copy where the database's writers cannot read it")


CHECKS: tuple[Callable[[Settings], Iterator[Check]], ...] = (
    check_versions,
    check_disk,
    check_log,
    check_database,
    check_profile,
    check_weights,
    check_series_rules,
    check_doors,
    check_completion,
    check_asked,
    check_device,
    check_segmenter,
    check_ports,
    check_last_end,
    check_listeners,
    check_ray_token,
    check_audit_key,
)


def examine(settings: Settings) -> list[Check]:
    """All findings, in reading order; a running stack is held against the settings that it was started with."""
    judged, whose = _in_force(settings)
    return [*whose, *(finding for check in CHECKS for finding in check(judged))]


def _in_force(settings: Settings) -> tuple[Settings, list[Check]]:
    """The settings that are judged, and whose they are; `settings` are those of this call."""
    effective = settings.run_dir / "settings.json"
    if not lock.is_held(settings.run_dir):
        return settings, []
    name = "settings"
    holder = lock.read_holder(settings.run_dir)
    starting = holder is not None and holder.state == "starting"
    if holder is not None and starting:
        # Until the database is looked after, the file holds the settings of the stack that ran before.
        begun = datetime.fromisoformat(holder.started_at).timestamp()
        if not effective.exists() or effective.stat().st_mtime < begun:
            return settings, [Check(name, True, f"those of this call are looked at; {_starting(holder)}")]
    try:
        running = load_effective(effective)
    except HeimdallrError as error:
        return settings, [
            Check(name, True, f"those of this call are looked at; those of the running stack: {error.detail}")
        ]
    found = [Check(name, True, "those of the running stack are looked at, not those of this call")]
    if holder is not None and starting:
        found.append(Check("stack", True, _starting(holder)))
    if other := differing(settings, running):
        listed = ", ".join(other[:MOST_NAMED]) + (f" and {len(other) - MOST_NAMED} more" if other[MOST_NAMED:] else "")
        found[0] = replace(
            found[0],
            detail=f"{found[0].detail}; they differ in {listed}",
            mend="those of this call hold from the next start on: heimdallr down, then heimdallr up with them",
        )
    return running, found


def differing(settings: Settings, running: Settings) -> list[str]:
    """The settings in which those of this call are other ones than those that a stack runs with.

    Not the folder by which it was found, nor those that a start fills in: a port that was left to it, the device.
    """
    filled = {"device": "auto", "server_port": 0, "dicom_port": 0, "data_dir": settings.data_dir}
    return [
        name
        for name in Settings.model_fields
        if getattr(settings, name) != getattr(running, name)
        and (name not in filled or getattr(settings, name) != filled[name])
    ]
