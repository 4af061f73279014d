"""Each thing that can stand in the way is found, and its mend is said."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from heimdallr_ray import cli
from heimdallr_ray.config import Settings, load, save_effective
from heimdallr_ray.dicom.rules import default_rules
from heimdallr_ray.listener.room import Room
from heimdallr_ray.operations import accelerator, doctor, ports, rayhead, status
from heimdallr_ray.operations.accelerator import Accelerators
from heimdallr_ray.operations.doctor import Check
from heimdallr_ray.operations.lock import DataFolderLock, Holder
from heimdallr_ray.security.audit_key import ensure_key
from heimdallr_ray.segmentation.tasks import models_of
from heimdallr_ray.segmentation.weights import MANIFEST_NAME, SYNTHETIC_MARKER, write_manifest

PORTS = {
    "HTTP port": ("server_port", "HEIMDALLR_SERVER_PORT"),
    "DICOM port": ("dicom_port", "HEIMDALLR_DICOM_PORT"),
    "Ray port": ("ray_port", "HEIMDALLR_RAY_PORT"),
}


def of(data_dir: Path, **values: Any) -> Settings:
    return load({}, data_dir=data_dir, **values)


def finding(check: Callable[[Settings], Iterator[Check]], settings: Settings, name: str) -> Check:
    (found,) = [one for one in check(settings) if one.name == name]
    assert found.ok != bool(found.mend), "a mend is said where, and only where, something is wrong"
    return found


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("name", PORTS)
def test_a_taken_port_is_named_with_its_holder(tmp_path: Path, taken: int, name: str) -> None:
    setting, variable = PORTS[name]
    found = finding(doctor.check_ports, of(tmp_path, **{setting: taken}), name)
    assert not found.ok
    assert f"{taken} is taken by" in found.detail and "on 127.0.0.1" in found.detail
    assert variable in found.mend
    free, *_ = ports.pick_free(1)
    assert finding(doctor.check_ports, of(tmp_path, **{setting: free}), name).ok
    assert finding(doctor.check_ports, of(tmp_path, **{setting: 0}), name).ok


def test_a_port_where_a_running_stack_does_not_listen_is_found(tmp_path: Path) -> None:
    free, *_ = ports.pick_free(1)
    settings = of(tmp_path, server_port=free)
    lock = DataFolderLock(settings.run_dir)
    try:
        found = finding(doctor.check_ports, settings, "HTTP port")
    finally:
        lock.release()
    assert not found.ok and "heimdallr down" in found.mend


def held_by(settings: Settings, state: str, step: str = "", started_at: str = "2026-11-02T08:00:00+00:00") -> Holder:
    return Holder(4321, started_at, "http://127.0.0.1:8001", "HEIMDALLR@127.0.0.1:11112", "a build", state, step=step)


@pytest.mark.parametrize(
    ("state", "step", "names", "words"),
    [
        ("starting", "", PORTS, "yet, the stack is starting since 2026-11-02T08:00:00+00:00, at the step: ports and w"),
        ("starting", "DICOM listener", PORTS, "yet, the stack is starting since 2026-11-02T08:00:00+00:00, at the st"),
        ("stopping", "", PORTS, "any more, the stack is stopping"),
        ("draining", "", ("DICOM port",), "any more, the stack is draining"),
    ],
)
def test_a_port_that_a_start_or_an_end_keeps_closed_is_nothing_to_mend(
    tmp_path: Path, state: str, step: str, names: tuple[str, ...], words: str
) -> None:
    settings = of(tmp_path, **dict(zip(("server_port", "dicom_port", "ray_port"), ports.pick_free(3), strict=True)))
    lock = DataFolderLock(settings.run_dir)
    try:
        lock.note(held_by(settings, state, step))
        found = {one.name: one for one in doctor.check_ports(settings)}
    finally:
        lock.release()
    assert {name for name, one in found.items() if one.level == "ok"} == set(names)
    assert all(f"nobody listens {words}" in found[name].detail for name in names)
    if step:
        assert all(found[name].detail.endswith("at the step: DICOM listener") for name in names)


def test_whose_settings_are_judged_is_said_and_where_the_others_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_doors,))
    running = of(
        tmp_path,
        device="cpu",
        server_port=8123,
        dicom_port=11999,
        sources=[{"name": "ward", "doors": ["upload"], "idle_seconds": 9}],
    )
    lock = DataFolderLock(running.run_dir)
    file = running.run_dir / "settings.json"
    save_effective(running, file)
    os.utime(file, (0, 0))
    same = of(tmp_path, server_port=0, dicom_port=0, sources=[{"name": "ward", "doors": ["upload"], "idle_seconds": 9}])
    shell = same.model_copy(update={"durability": "study", "ae_title": "OTHER"})
    try:
        lock.note(held_by(running, "ready"))
        one, *_ = doctor.examine(same)
        assert (one.name, one.level) == ("settings", "ok")
        assert one.detail == "those of the running stack are looked at, not those of this call"
        one, *others = doctor.examine(shell)
        assert one.level == "note" and one.detail.endswith("this call; they differ in ae_title, durability"), one.detail
        assert "heimdallr down" in one.mend
        assert [found.detail for found in others if found.name == "called AE"] == ["HEIMDALLR"]
        # A start has not come to them yet: the file is of the stack that ran before.
        lock.note(held_by(running, "starting"))
        one, *others = doctor.examine(shell)
        assert one.level == "ok" and one.detail.startswith("those of this call are looked at; the stack is starting")
        assert [found.detail for found in others if found.name == "called AE"] == ["OTHER"]
        lock.note(held_by(running, "starting", "DICOM listener", started_at="1970-01-01T00:00:00+00:00"))
        one, two, *_ = doctor.examine(same)
        assert one.detail.startswith("those of the running stack") and two.detail.endswith("step: DICOM listener")
        file.write_text("{")
        one, *others = doctor.examine(shell)
        assert one.level == "ok" and one.detail.startswith("those of this call are looked at; those of the running")
    finally:
        lock.release()
    assert "settings" not in {found.name for found in doctor.examine(shell)}


@pytest.mark.parametrize(
    ("ok", "mend", "level"), [(True, "", "ok"), (True, "know this", "note"), (False, "do this", "mend")]
)
def test_a_hint_where_nothing_is_in_the_way_is_a_note(ok: bool, mend: str, level: str) -> None:
    check = Check("name", ok, "detail", mend)
    assert check.as_json() == {"level": level, "name": "name", "ok": ok, "detail": "detail", "mend": mend}


@pytest.mark.parametrize(("broken", "status"), [(False, 0), (True, 1)])
def test_notes_do_not_change_the_exit_status(monkeypatch: pytest.MonkeyPatch, broken: bool, status: int) -> None:
    findings = [Check("ports", True, "fine"), Check("Ray", True, "reachable", "a firewall")]
    findings += [Check("disk", False, "full", "free some")] if broken else []

    def examine(_settings: Settings) -> list[Check]:
        return findings

    monkeypatch.setattr(doctor, "examine", examine)
    done = CliRunner().invoke(cli.app, ["doctor"])
    assert done.exit_code == status
    assert "NOTE Ray: reachable" in done.output and "ok   ports" in done.output
    assert ("MEND disk" in done.output) == broken


def test_no_weights_are_found_missing(tmp_path: Path) -> None:
    found = finding(doctor.check_weights, of(tmp_path, profile="site"), "weights")
    assert not found.ok and "weights_missing" in found.detail
    assert f"{tmp_path / 'weights'} (profile site)" in found.detail
    assert "docs/weights.md" in found.mend and "--profile demo" in found.mend


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    model = tmp_path / "weights" / "Dataset298" / "trainer"
    model.mkdir(parents=True)
    (model / "dataset.json").write_text(json.dumps({"description": SYNTHETIC_MARKER}))
    write_manifest(tmp_path / "weights", synthetic=True)
    return tmp_path / "weights"


def test_a_changed_model_file_is_found(tmp_path: Path, registry: Path) -> None:
    (registry / "Dataset298" / "trainer" / "dataset.json").write_text("{}")
    found = finding(doctor.check_weights, of(tmp_path, profile="demo", weights_dir=registry), "weights")
    assert not found.ok and "weights_tampered" in found.detail and "manifest" in found.mend


def test_series_rules_of_a_site_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "series.toml"
    path.write_text('rules_id = "ward-7"')
    found = finding(doctor.check_series_rules, of(tmp_path, series_rules=path), "series rules")
    assert not found.ok and "profiles" in found.detail and "HEIMDALLR_SERIES_RULES" in found.mend
    own = (resources.files("heimdallr_ray.dicom") / "series_rules.toml").read_text(encoding="utf-8")
    path.write_text(own.replace("heimdallr-series", "ward-7"))
    said = finding(doctor.check_series_rules, of(tmp_path, series_rules=path), "series rules").detail
    assert f"ward-7 version {default_rules().file.version}" in said
    assert "the package's own" in finding(doctor.check_series_rules, of(tmp_path), "series rules").detail


def test_what_a_site_asks_for_exists(tmp_path: Path) -> None:
    asked = of(tmp_path, measurements=("liver_volume",), segmentations=("lung_vessels",))
    assert finding(doctor.check_asked, asked, "asked for").detail == "liver_volume; labels of lung_vessels"
    assert finding(doctor.check_asked, of(tmp_path), "asked for").detail == "all measurements"
    for wrong in ({"segmentations": ("lungs",)}, {"measurements": ("liver",)}):
        found = finding(doctor.check_asked, of(tmp_path, **wrong), "asked for")
        assert not found.ok and "there is no" in found.detail and "HEIMDALLR_SEGMENTATIONS" in found.mend


@pytest.mark.parametrize("said", [True, False])
def test_demo_weights_of_a_site_are_found_whatever_their_manifest_says(
    tmp_path: Path, registry: Path, said: bool
) -> None:
    document = json.loads((registry / MANIFEST_NAME).read_text())
    (registry / MANIFEST_NAME).write_text(json.dumps(document | {"synthetic": said}))
    found = finding(doctor.check_weights, of(tmp_path, profile="site", weights_dir=registry), "weights")
    assert not found.ok and "DEMO WEIGHTS" in found.detail
    assert "HEIMDALLR_WEIGHTS_DIR" in found.mend
    demo = finding(doctor.check_weights, of(tmp_path, profile="demo", weights_dir=registry), "weights")
    assert demo.ok and "DEMO WEIGHTS" in demo.detail


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_token_that_others_can_read_is_found(tmp_path: Path, mode: int) -> None:
    settings = of(tmp_path)
    assert finding(doctor.check_ray_token, settings, "Ray token").ok
    token = rayhead.places(settings).token_file
    token.parent.mkdir(parents=True)
    rayhead.ensure_token(token)
    assert finding(doctor.check_ray_token, settings, "Ray token").ok
    token.chmod(mode)
    found = finding(doctor.check_ray_token, settings, "Ray token")
    assert not found.ok and f"{mode:o}" in found.detail and f"chmod 600 {token}" in found.mend


def test_a_log_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    settings = of(tmp_path, log_level="DEBUG", log_file_mib=3, log_files=7)
    found = finding(doctor.check_log, settings, "log")
    assert found.ok and not found.mend and f"{settings.log_dir}, DEBUG and above, at most 21 MiB" in found.detail
    assert not settings.log_dir.exists()
    (settings.log_dir / "listener.log").mkdir(parents=True)
    found = finding(doctor.check_log, settings, "log")
    assert not found.ok and "listener.log cannot be written" in found.detail and "chown" in found.mend
    (settings.log_dir / "listener.log").rmdir()
    settings.log_dir.rmdir()
    settings.log_dir.write_bytes(b"")
    found = finding(doctor.check_log, settings, "log")
    assert not found.ok and found.detail == f"{settings.log_dir} is no folder" and "mv " in found.mend


def test_a_full_disk_is_found_with_what_is_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = of(tmp_path, min_free_mib=1024, disk_warn_percent=80.0, disk_refuse_percent=90.0)
    room = Room(20.0, 1024 << 20)

    def measure(_folder: Path) -> Room:
        return room

    monkeypatch.setattr(doctor.disk_room, "measure", measure)
    found = finding(doctor.check_disk, settings, "disk")
    assert found.ok and not found.mend and found.detail.endswith("20 % full")
    room = Room(20.0, 1000 << 20)
    found = finding(doctor.check_disk, settings, "disk")
    assert not found.ok and "1000 MiB free" in found.detail and "free 24 MiB" in found.mend
    # As the doors see it: a share of the disk, whatever is free.
    room = Room(85.0, 30_000 << 20)
    found = finding(doctor.check_disk, settings, "disk")
    assert found.ok and "from 90 % on images are refused" in found.detail
    room = Room(92.0, 8_000 << 20)
    found = finding(doctor.check_disk, settings, "disk")
    assert not found.ok and "disk_refuse_percent 90" in found.mend and "free 2000 MiB" in found.mend


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///{folder}/nowhere/catalog.sqlite",
        "sqlite:///{folder}/notes.txt",
        "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "no address at all",
    ],
)
def test_a_wrong_database_url_is_found(tmp_path: Path, url: str) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but longer than a header of one" * 10)
    found = finding(doctor.check_database, of(tmp_path, database_url=url.format(folder=tmp_path)), "database")
    assert not found.ok and ":" in found.detail
    assert "HEIMDALLR_DATABASE_URL" in found.mend


def test_a_database_that_the_first_start_makes_is_no_finding(tmp_path: Path) -> None:
    assert finding(doctor.check_database, of(tmp_path), "database").ok


@pytest.mark.parametrize(
    ("device", "found", "level", "words"),
    [
        ("auto", Accelerators(0, 0), "ok", "none; models run on the CPU"),
        ("cpu", Accelerators(0, 0), "ok", "none; models run on the CPU"),
        ("cuda", Accelerators(0, 0), "mend", "none; models run on the CPU"),
        ("auto", Accelerators(2, 2), "ok", "torch can use 2 of 2 NVIDIA device(s)"),
        ("cpu", Accelerators(2, 2), "ok", "torch can use 2 of 2 NVIDIA device(s); models run on the CPU"),
        ("auto", Accelerators(1, 0, "the driver is too old"), "note", "torch cannot use the 1 NVIDIA device(s)"),
        ("cuda", Accelerators(1, 0, "the driver is too old"), "mend", "of this host: the driver is too old"),
    ],
)
def test_the_accelerator_is_the_drivers_and_torchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, found: Accelerators, level: str, words: str
) -> None:
    monkeypatch.setattr(accelerator, "look", lambda: found)
    (check,) = [one for one in doctor.check_device(of(tmp_path, device=device)) if one.name == "GPU"]
    assert (check.level, words in check.detail) == (level, True), check
    if level == "mend" and not found.present:
        assert "HEIMDALLR_DEVICE=auto" in check.mend
    if found.present and not found.usable:
        assert "install a driver that fits" in check.mend


def tiny_registry(folder: Path, *tasks: str) -> Path:
    for model in {model for name in tasks for model in models_of(name)}:
        checkpoint = folder / model.checkpoint
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(model.folder.encode())
    write_manifest(folder, synthetic=False)
    return folder


def test_models_that_a_ct_study_needs_are_named_with_the_command(tmp_path: Path) -> None:
    settings = of(tmp_path, profile="site")
    tiny_registry(tmp_path / "weights", "total_fastest")
    found = finding(doctor.check_weights, settings, "models")
    assert not found.ok and "total_fast not installed" in found.detail
    assert found.mend.endswith(f"run: heimdallr models fetch total_fast --into {tmp_path / 'weights'}")
    assert "total_fast not installed" in status.models_lacking(settings)
    assert status.collect(settings)["models"] == status.models_lacking(settings)
    assert str(tmp_path / "weights") in status.models_lacking(settings)


def test_models_that_are_only_wanted_are_a_note(tmp_path: Path) -> None:
    settings = of(tmp_path, profile="site")
    tiny_registry(tmp_path / "weights", "total_fastest", "total_fast")
    found = next(one for one in doctor.check_weights(settings) if one.name == "models")
    assert found.level == "note" and "cerebral_bleed, tissue_types not installed" in found.detail
    assert "heimdallr models fetch cerebral_bleed tissue_types --into" in found.mend
    assert status.models_lacking(settings) == "" and "models" not in status.collect(settings)


def test_the_demo_lacks_no_model(tmp_path: Path) -> None:
    found = finding(doctor.check_weights, of(tmp_path, profile="demo"), "models")
    assert found.level == "ok"


def test_the_profile_that_ran_here_is_named_and_status_looks_at_it(tmp_path: Path) -> None:
    site = of(tmp_path)
    (fresh,) = doctor.check_profile(site)
    assert fresh.level == "ok" and "site is looked at" in fresh.detail and "--profile demo" in fresh.detail
    assert status.collect(site)["profile"] == "site" and "models" in status.collect(site)
    site.run_dir.mkdir(parents=True, exist_ok=True)
    save_effective(of(tmp_path, profile="demo"), site.run_dir / "settings.json")
    (noted,) = doctor.check_profile(site)
    assert noted.level == "note" and noted.mend == "heimdallr doctor --profile demo looks at that"
    down = status.collect(site)
    assert (down["state"], down["profile"]) == ("down", "demo") and "models" not in down
    assert status.collect(of(tmp_path, profile="site"))["profile"] == "site", "what is set is what is looked at"
    (same,) = doctor.check_profile(of(tmp_path, profile="demo"))
    assert same.level == "ok"


def test_the_key_of_the_audit_chain_is_ours_alone(tmp_path: Path) -> None:
    settings = load({}, None, data_dir=tmp_path)
    (before,) = doctor.check_audit_key(settings)
    assert before.ok and "first `heimdallr up`" in before.detail
    assert not settings.resolved_audit_key_file.exists()
    key = ensure_key(settings.resolved_audit_key_file)
    (there,) = doctor.check_audit_key(settings)
    assert there.level == "ok" and key.id in there.detail and key.secret.hex() not in there.detail
    settings.resolved_audit_key_file.chmod(0o644)
    (found,) = doctor.check_audit_key(settings)
    assert found.level == "mend" and "chmod 600" in found.detail
