"""What an entry may hold, and the key it is sealed with."""

from __future__ import annotations

import multiprocessing
import os
import stat
from datetime import datetime
from pathlib import Path

import pytest
from sqlmodel import Session

from heimdallr_ray.errors import BadIdentifier, BadSetting, StorageFailed
from heimdallr_ray.security.audit import Action, Actor, AuditLog, clean, encode_detail
from heimdallr_ray.security.audit_check import Anchor
from heimdallr_ray.security.audit_key import AuditKey, ensure_key, read_key
from tests.support.clock import EPOCH


def test_what_comes_from_outside_is_bounded_printable_ascii() -> None:
    assert clean("CT_1", 64) == "CT_1"
    assert clean("a\r\nb\0c\\d", 64) == "a\\r\\nb\\x00c\\\\d"
    assert clean("é\u202e", 64) == "\\xe9\\u202e"
    assert len(clean("\0" * 500, 64)) == 64


def test_a_detail_is_canonical_and_bounded() -> None:
    assert encode_detail({"b": 1, "a": None, "c": True, "d": "x"}) == '{"a":null,"b":1,"c":true,"d":"x"}'
    assert len(encode_detail({"a": "x" * 10_000})) < 300
    with pytest.raises(ValueError, match="facts"):
        encode_detail({str(index): index for index in range(17)})


def test_an_entry_belongs_to_a_transaction_and_has_a_zone() -> None:
    log = AuditLog(AuditKey(b"k" * 32))
    with pytest.raises(RuntimeError, match="outside"):
        log.append(Session(), Action.UPLOAD_ACCEPTED, Actor.system("x"), now=EPOCH)
    with pytest.raises(ValueError, match="naive"):
        log.append(Session(), Action.UPLOAD_ACCEPTED, Actor.system("x"), now=datetime(2026, 1, 1))


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "audit.key"
    key = ensure_key(path)
    assert ensure_key(path) == key == read_key(path)
    assert len(key.secret) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["audit.key"]
    assert key.secret.hex() not in repr(key)
    assert key.id != ensure_key(tmp_path / "another").id


def _make(path: str, barrier: object, found: object) -> None:
    barrier.wait(30)  # pyright: ignore[reportAttributeAccessIssue]
    found.put(ensure_key(Path(path)).secret.hex())  # pyright: ignore[reportAttributeAccessIssue]


def test_processes_that_start_together_get_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(4), context.Queue()
    started = [
        context.Process(target=_make, args=(str(tmp_path / "audit.key"), barrier, found), daemon=True) for _ in range(4)
    ]
    for process in started:
        process.start()
    keys = {found.get(timeout=30) for _ in started}
    for process in started:
        process.join(30)
    assert len(keys) == 1


def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    ensure_key(path)
    path.chmod(0o640)
    with pytest.raises(BadSetting, match="chmod 600"):
        ensure_key(path)
    path.write_text("secret")
    path.chmod(0o600)
    with pytest.raises(BadSetting, match="64 hexadecimal"):
        ensure_key(path)
    with pytest.raises(BadSetting, match="no file"):
        ensure_key(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(BadSetting, match="no file"):
        read_key(fifo)
    with pytest.raises(FileNotFoundError):
        read_key(tmp_path / "none")
    (tmp_path / "flat").write_text("")
    with pytest.raises(StorageFailed):
        ensure_key(tmp_path / "flat" / "audit.key")


def test_an_anchor_is_what_head_prints() -> None:
    anchor = Anchor(12, "a" * 64)
    assert Anchor.parse(f" {anchor}\n") == anchor
    for wrong in ("", "12", f"-1:{'a' * 64}", f"12:{'A' * 64}", f"12:{'a' * 63}"):
        with pytest.raises(BadIdentifier):
            Anchor.parse(wrong)
