"""The same data set in two files is told by its bytes, however the files name it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener import part10, wrapping
from heimdallr_ray.listener.arrival import Arrival, encode_file_start
from heimdallr_ray.listener.wrapping import DataSets, Uncompared, same_data_set
from heimdallr_ray.storage.blobs import LocalBlobStore
from tests.support.clock import EPOCH

BODY = bytes(range(256)) * 40


def wrapped(body: bytes = BODY, uid: str = "1.2.3", syntax: str = part10.EXPLICIT_LITTLE) -> bytes:
    return encode_file_start(Arrival("a1", Door.DICOM, EPOCH, syntax, "1.2", uid)) + body


@pytest.mark.parametrize("chunk", [7, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("other", "same"),
    [
        (wrapped(), True),
        (wrapped(uid="1.2.3.4.5.6.7.8.9"), True),
        (wrapped(uid=""), True),
        (wrapped(syntax=part10.DEFLATED_LITTLE), False),
        (wrapped(BODY[:-1] + b"!"), False),
        (wrapped(BODY[:-1]), False),
        (wrapped(BODY + b"!"), False),
        (wrapped(b""), False),
    ],
)
def test_what_lies_behind_group_0002_decides(
    other: bytes, same: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrapping, "CHUNK", chunk)
    assert same_data_set(io.BytesIO(wrapped()), io.BytesIO(other)) is same
    assert same_data_set(io.BytesIO(other), io.BytesIO(wrapped())) is same


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")


def test_what_is_asked_is_known_after_the_files_were_compared(blobs: LocalBlobStore) -> None:
    one, other, changed = (
        blobs.put(content).sha256 for content in (wrapped(), wrapped(uid="1.2.4"), wrapped(BODY[:-1] + b"!"))
    )
    data_sets = DataSets(blobs)
    data_sets.require_compared()
    assert not data_sets.same(one, other) and not data_sets.same(changed, one)
    with pytest.raises(Uncompared):
        data_sets.require_compared()
    data_sets.compare()
    assert data_sets.same(one, other) and data_sets.same(other, one)
    assert not data_sets.same(one, changed) and not data_sets.same(changed, one)
    data_sets.require_compared()


def test_a_file_that_cannot_be_read_is_different_and_is_not_asked_about_for_ever(blobs: LocalBlobStore) -> None:
    here, broken = blobs.put(wrapped()).sha256, blobs.put(b"no file of ours").sha256
    data_sets = DataSets(blobs)
    for other in (Sha256("ab" * 32), broken):
        assert not data_sets.same(here, other)
    data_sets.compare()
    for other in (Sha256("ab" * 32), broken):
        assert not data_sets.same(here, other)
    data_sets.require_compared()
    # Others that are always new end too.
    for number in range(2 * wrapping.MAX_ROUNDS):
        assert not data_sets.same(here, f"{number:064x}")
        data_sets.compare()
    assert not data_sets.same(here, "f" * 64)
    data_sets.require_compared()
