"""The contract of the blob store, on a real folder."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heimdallr_ray.errors import BadIdentifier, BlobMissing, HeimdallrError, StorageFailed, StorageFull, TooLarge
from heimdallr_ray.ids import Sha256
from heimdallr_ray.storage import blobs
from heimdallr_ray.storage.blobs import BlobRef, LocalBlobStore
from tests.support.studies import digest

HELLO = Sha256("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "data" / "blobs")


def _files(store: LocalBlobStore) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


@pytest.mark.parametrize("content", [b"hello", [b"he", b"", b"llo"]])
def test_bytes_come_back_under_their_digest(store: LocalBlobStore, content: bytes | list[bytes]) -> None:
    ref = store.put(content)
    assert ref == BlobRef(HELLO, 5)
    assert _files(store) == [f"2c/{HELLO}"]
    assert (store.read(HELLO, 5), store.size(HELLO), store.exists(HELLO)) == (b"hello", 5, True)
    with store.open(HELLO) as file:
        assert file.read() == b"hello"
    assert store.path(HELLO).read_bytes() == b"hello"
    assert store.verify(HELLO) == ref


def test_an_empty_blob_is_a_blob(store: LocalBlobStore) -> None:
    ref = store.put(b"")
    assert (ref.size, store.read(ref.sha256, 0)) == (0, b"")


def test_a_blob_is_not_for_everybody_to_read(store: LocalBlobStore) -> None:
    store.put(b"hello")
    assert store.path(HELLO).stat().st_mode & 0o337 == 0


def kept(store: LocalBlobStore, source: Path) -> None:
    store.keep([(source, HELLO)])
    store.settle([HELLO])


def test_keeping_links_without_copying_and_leaves_the_file(store: LocalBlobStore, tmp_path: Path) -> None:
    source = tmp_path / "spooled"
    source.write_bytes(b"hello")
    for _ in range(2):
        kept(store, source)
    assert source.samefile(store.path(HELLO))
    source.unlink()
    assert store.verify(HELLO).size == 5


def test_what_its_writer_has_digested_is_kept_under_that_name(store: LocalBlobStore, tmp_path: Path) -> None:
    files = [(tmp_path / f"f{n}", digest(str(n % 7))) for n in range(20)]
    for n, (path, _) in enumerate(files):
        path.write_bytes(str(n % 7).encode())
    store.keep(files)
    assert len(_files(store)) == 7
    for _, sha256 in files:
        store.verify(sha256)
    with pytest.raises(BlobMissing):
        store.keep([(tmp_path / "absent", digest("absent"))])


def test_a_name_without_its_bytes_is_mended_when_they_come_again(store: LocalBlobStore, tmp_path: Path) -> None:
    """A power cut may take bytes that were not fsynced and leave the name; that must not pass for the blob."""
    first, again = tmp_path / "first", tmp_path / "again"
    for path in (first, again):
        path.write_bytes(b"an image")
    store.keep([(first, Sha256(digest("an image")))])
    for lost in (b"", bytes(8), b"an imagf"):
        store.locate(digest("an image")).unlink()
        store.locate(digest("an image")).write_bytes(lost)
        store.keep([(again, Sha256(digest("an image")))])
        assert store.verify(digest("an image")).size == 8
    assert first.read_bytes() == again.read_bytes() == b"an image"


def test_hardening_names_what_is_not_there(store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    there, absent = store.put(b"there").sha256, digest("absent")
    assert store.harden([there, absent]) == [absent]

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageFailed):
        store.harden([there])


def test_keeping_copies_where_no_link_is_possible(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_source: Path, _target: str) -> None:
        raise OSError(errno.EXDEV, "cross-device")

    source = tmp_path / "spooled"
    source.write_bytes(b"hello")
    monkeypatch.setattr(os, "link", refuse)
    kept(store, source)
    assert not source.samefile(store.path(HELLO))
    assert _files(store) == [f"2c/{HELLO}"]


def test_what_is_missing_is_said_to_be_missing(store: LocalBlobStore, tmp_path: Path) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.open(HELLO),
        lambda: store.path(HELLO),
        lambda: store.read(HELLO, 10),
        lambda: store.size(HELLO),
        lambda: store.verify(HELLO),
        lambda: store.keep([(tmp_path / "absent", HELLO)]),
    )
    for call in calls:
        with pytest.raises(BlobMissing):
            call()
    assert not store.exists(HELLO)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", HELLO.upper(), HELLO + "/", HELLO[:-1], "\0" * 64])
def test_what_is_not_a_digest_never_becomes_a_path(store: LocalBlobStore, name: str) -> None:
    for call in (store.open, store.path, store.size, store.verify, store.exists):
        with pytest.raises(BadIdentifier):
            call(name)


def test_reading_is_bounded(store: LocalBlobStore) -> None:
    store.put(b"hello")
    with pytest.raises(TooLarge):
        store.read(HELLO, 4)


@pytest.mark.parametrize("damage", [b"hellO", b"hell", b"hello!"])
def test_a_damaged_blob_is_found(store: LocalBlobStore, damage: bytes) -> None:
    path = store.path(store.put(b"hello").sha256)
    path.chmod(0o600)
    path.write_bytes(damage)
    with pytest.raises(BlobMissing, match="differ"):
        store.verify(HELLO)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StorageFailed),
        (errno.EROFS, StorageFailed),
    ],
)
@pytest.mark.parametrize("operation", ["write", "fsync"])
def test_a_disk_that_refuses_leaves_nothing_behind(
    store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch, operation: str, number: int, error: type[HeimdallrError]
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(blobs.os, operation, refuse)
        with pytest.raises(error):
            store.put(b"hello")
    assert _files(store) == []
    assert store.put(b"hello").sha256 == HELLO


def test_a_source_that_fails_leaves_nothing_behind(store: LocalBlobStore) -> None:
    def source() -> Iterator[bytes]:
        yield b"he"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.put(source())
    assert _files(store) == []


def test_what_is_removed_is_gone_and_the_others_stay(store: LocalBlobStore) -> None:
    one, two, three = (store.put(content).sha256 for content in (b"1", b"2", b"3"))
    assert store.remove([one, digest("never there"), two]) == 2
    assert [store.exists(sha256) for sha256 in (one, two, three)] == [False, False, True]
    assert store.remove([one, two]) == 0
    with pytest.raises(BadIdentifier):
        store.remove([three, "../../etc/passwd"])
    assert _files(store) == []


def test_a_disk_that_refuses_to_remove_is_told(store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (store.put(content).sha256 for content in (b"1", b"2"))
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == two:
            raise OSError(errno.EROFS, "read-only")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageFailed):
        store.remove([one, two])
    assert (store.exists(one), store.exists(two)) == (False, True)


def test_the_rests_of_dead_writers_are_swept_and_the_living_are_left(tmp_path: Path) -> None:
    root = tmp_path / "blobs"
    store = LocalBlobStore(root)
    dead, fresh, alive = (root / "tmp" / f"{name}.part" for name in ("dead", "fresh", "alive"))
    for path in (dead, fresh, alive):
        path.write_bytes(b"half")
    for path in (dead, alive):
        os.utime(path, (0, 0))
    with alive.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        store.put(b"hello")
        LocalBlobStore(root)
        assert _files(store) == [f"2c/{HELLO}", "tmp/alive.part", "tmp/fresh.part"]
    assert store.sweep() == 1
    assert _files(store) == [f"2c/{HELLO}", "tmp/fresh.part"]


def test_many_writers_of_the_same_bytes_agree(tmp_path: Path) -> None:
    stores = [LocalBlobStore(tmp_path / "blobs") for _ in range(4)]
    refs: list[BlobRef] = []

    def write(store: LocalBlobStore) -> None:
        for n in range(10):
            refs.append(store.put(str(n).encode() * 1000))

    threads = [threading.Thread(target=write, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 40
    assert len(_files(stores[0])) == 10
    for ref in set(refs):
        assert stores[0].verify(ref.sha256) == ref
