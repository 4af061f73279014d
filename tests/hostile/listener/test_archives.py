"""Archives that mean harm: refused, with nothing kept and nothing written outside the data folder."""

from __future__ import annotations

import hashlib
import io
import resource
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from heimdallr_ray.errors import BadArchive, EmptyInput, HeimdallrError, Rejected, TooLarge
from heimdallr_ray.listener.archive import ArchiveLimits, receive_zip
from heimdallr_ray.listener.receive import Receiver
from tests.support.intake import Intake, ct_slice, file_bytes

LIMITS = ArchiveLimits(max_entries=5_000, max_unpacked_bytes=1 << 30)
GOOD = file_bytes(ct_slice(1, "1.2.3.4", "1.2.3.4.5"))


def archive(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as output:
        warnings.simplefilter("ignore", UserWarning)
        for name, content in members:
            output.writestr(name, content)
    return buffer.getvalue()


def named(name: str) -> bytes:
    return archive((zipfile.ZipInfo(name), GOOD))


def with_nul() -> bytes:
    # zipfile cuts names at a NUL when it writes, so the byte is put in afterwards.
    return archive(("a#b.dcm", GOOD)).replace(b"a#b.dcm", b"a\0b.dcm")


def symlink() -> bytes:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    return archive(("one.dcm", GOOD), (info, b"/etc/passwd"))


def encrypted() -> bytes:
    content = bytearray(archive(("one.dcm", GOOD), method=zipfile.ZIP_STORED))
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def bomb() -> bytes:
    return archive(("zeros.dcm", GOOD), ("bomb", b"\0" * (96 << 20)))


def lying_bomb() -> bytes:
    """The directory says 100 bytes; the stream inflates to 96 MiB."""
    content = bytearray(archive(("bomb", b"\0" * (96 << 20))))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.rindex(signature) + offset, 100)
    return bytes(content)


def many_entries() -> bytes:
    return archive(*((f"{index}", b"") for index in range(6_000)), method=zipfile.ZIP_STORED)


def overlapping() -> bytes:
    """Two directory entries share one local entry."""
    content = archive(("a.dcm", GOOD), method=zipfile.ZIP_STORED)
    start = content.rindex(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    entry = content[start:end]
    record = bytearray(content[end:])
    struct.pack_into("<HHI", record, 8, 2, 2, 2 * len(entry))
    return content[:start] + entry + entry.replace(b"a.dcm", b"b.dcm") + bytes(record)


def nested() -> bytes:
    inner = archive(("one.dcm", GOOD))
    return archive(("middle.zip", archive(("inner.zip", inner))))


def damaged() -> bytes:
    content = bytearray(archive(("one.dcm", GOOD), ("two.dcm", file_bytes(ct_slice(2, "1.2.3.4", "1.2.3.4.5")))))
    second = content.rindex(b"PK\x03\x04")
    for position in range(second + 200, second + 400):
        content[position] ^= 0x5A
    return bytes(content)


CASES: dict[str, tuple[Callable[[], bytes], type[HeimdallrError]]] = {
    "bomb": (bomb, TooLarge),
    "lying bomb": (lying_bomb, Rejected),
    "nested": (nested, EmptyInput),
    "too many entries": (many_entries, TooLarge),
    "overlap": (overlapping, BadArchive),
    "duplicate names": (lambda: archive(("a", GOOD), ("a", GOOD)), BadArchive),
    "symlink": (symlink, BadArchive),
    "parent": (lambda: named("../../evil.dcm"), BadArchive),
    "parent with backslash": (lambda: named("..\\evil.dcm"), BadArchive),
    "absolute": (lambda: named("/etc/evil.dcm"), BadArchive),
    "drive letter": (lambda: named("C:\\evil.dcm"), BadArchive),
    "nul": (with_nul, BadArchive),
    "encrypted": (encrypted, BadArchive),
    "damaged in the second entry": (damaged, BadArchive),
    "lzma": (lambda: archive(("a.dcm", GOOD), method=zipfile.ZIP_LZMA), BadArchive),
    "not a zip": (lambda: b"PK but not really" * 10, BadArchive),
    "empty file": (lambda: b"", BadArchive),
    "cut off": (lambda: archive(("one.dcm", GOOD))[:-40], BadArchive),
    "no dicom": (lambda: archive(("readme.txt", b"hello" * 100)), EmptyInput),
    "empty archive": (lambda: archive(), EmptyInput),
}


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", CASES)
def test_hostile_archives_are_refused_and_leave_nothing(tmp_path: Path, name: str) -> None:
    make, error = CASES[name]
    intake = Intake(tmp_path / "data")
    receiver = Receiver(intake.settings, intake.database, intake.blobs, intake.clock)
    path = tmp_path / "upload.zip"
    path.write_bytes(make())
    outside = tree(tmp_path)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(error) as raised:
        receive_zip(path, receiver, LIMITS, "upload-1")
    assert 400 <= raised.value.http_status < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 96 * 1024
    assert intake.spooled() == []
    assert intake.instances() == []
    after = tree(tmp_path)
    assert {key: after[key] for key in outside if not key.startswith("data/catalog")} == {
        key: value for key, value in outside.items() if not key.startswith("data/catalog")
    }
    assert {key for key in after if key not in outside and not key.startswith("data/catalog")} == set()


def test_random_damage_ends_in_a_typed_error_or_an_upload(tmp_path: Path) -> None:
    import random

    seed = 20261122
    print(f"seed {seed}")
    random_source = random.Random(seed)
    intake = Intake(tmp_path / "data")
    receiver = Receiver(intake.settings, intake.database, intake.blobs, intake.clock)
    original = archive(("one.dcm", GOOD), ("notes.txt", b"text"))
    path = tmp_path / "upload.zip"
    refused = 0
    for round_ in range(150):
        content = bytearray(original)
        for _ in range(random_source.randint(1, 8)):
            content[random_source.randrange(len(content))] = random_source.randrange(256)
        path.write_bytes(content[: random_source.choice([len(content), random_source.randrange(len(content))])])
        try:
            receive_zip(path, receiver, LIMITS, f"upload-{round_}")
        except Rejected:
            refused += 1
        assert intake.spooled() == []
    assert refused > 20
