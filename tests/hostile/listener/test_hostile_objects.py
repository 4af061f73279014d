"""Hostile objects by C-STORE: what they hold is parsed within bounds, stored byte for byte or refused, never obeyed."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.support.bombs import deflated_bomb_data_set
from tests.support.intake import (
    Intake,
    all_committed,
    ct_slice,
    dataset_bytes,
    file_bytes,
    sha256,
    storescu,
    wait_for,
    write_study,
)
from tests.support.listeners import Cost, ListenerProcess, children_of, running
from tests.support.starts import started
from tests.support.wirepeer import CT, DEFLATED, EXPLICIT, Gone, WirePeer, echoes

STUDY = "1.2.826.0.1.3680043.9.9.3"
TRIES = 3
"""Of a time that others' work on the machine may lengthen, the best counts."""


@pytest.fixture
def listener(tmp_path: Path) -> Generator[ListenerProcess]:
    with running(tmp_path / "data") as process:
        # What is imported and allocated once does not count as the cost of an object.
        with WirePeer(process.port) as peer:
            assert peer.store(dataset_bytes(file_bytes(ct_slice(1, STUDY, f"{STUDY}.1"))), f"{STUDY}.1.1") == 0
        yield process


def stored(listener: ListenerProcess) -> dict[str, str]:
    """SOP Instance UID to sha256 of the data set, once the listener has nothing in hand."""
    wait_for(lambda: listener.status()["counts"]["queued"] == 0, 30, "rows")
    return Intake(listener.root).stored()


def offered(listener: ListenerProcess, body: bytes, sop: str, syntax: str = EXPLICIT) -> tuple[int | None, Cost]:
    """The answer to a C-STORE (None: the association was ended) and what it cost the listener; the best of TRIES."""
    answers: list[int | None] = []

    def offer() -> None:
        with WirePeer(listener.port, (syntax,)) as peer:
            try:
                answers.append(peer.store(body, sop, syntax))
            except Gone:
                answers.append(None)
                peer.close()

    costs = [listener.cost(offer) for _ in range(TRIES)]
    assert len(set(answers)) == 1, answers
    assert listener.alive
    assert echoes(listener.port)
    return answers[0], Cost(min(cost.cpu_s for cost in costs), max(cost.rss_growth_mib for cost in costs))


def test_a_deflated_bomb_is_stored_byte_for_byte_and_never_inflated(listener: ListenerProcess) -> None:
    """Check 18 of the reliability list by C-STORE: 1 GiB in 1.04 MB costs under 64 MiB and under 0.5 s."""
    body = deflated_bomb_data_set()
    answer, cost = offered(listener, body, f"{STUDY}.2", DEFLATED)
    print(f"deflated bomb: status {answer}, {cost}")
    assert cost.cpu_s < 0.5
    assert cost.rss_growth_mib < 64
    # The data set says who it is in its first bytes, so it is stored; nothing but these bytes was kept of it.
    assert answer == 0
    assert sha256(body) in stored(listener).values()


def explicit_element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    head = struct.pack("<HH2s", group, element, vr)
    long = vr in (b"SQ", b"OB", b"UN")
    return head + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))) + value


def nested(depth: int) -> bytes:
    """`depth` sequences, each the only element of the only item of the one around it, of undefined length."""
    begin = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return begin * depth + end * depth


def empty_elements(count: int) -> bytes:
    """`count` elements without a value, with ascending private tags."""
    return b"".join(
        struct.pack("<HH2sH", 0x0009 + 2 * (n // 0xE000), 0x1000 + n % 0xE000, b"LO", 0) for n in range(count)
    )


HEAD = explicit_element(0x0008, 0x0016, b"UI", f"{CT}\0".encode()) + explicit_element(0x0008, 0x0060, b"CS", b"CT")
TAIL = explicit_element(0x0020, 0x000D, b"UI", f"{STUDY}.4".encode().ljust(30, b"\0"))


def in_an_item(content: bytes) -> bytes:
    """`content` as the only item of a sequence, both of undefined length."""
    begin, end = nested(1)[:20], nested(1)[20:]
    return begin + content + end


ENDLESS = {
    "10000 nested sequences": HEAD + nested(10_000) + TAIL,
    "1000000 empty elements": HEAD + empty_elements(1_000_000) + TAIL,
    "1000000 empty elements of an item": HEAD + in_an_item(empty_elements(1_000_000)) + TAIL,
}


@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS)
def test_endless_structures_are_answered_within_bounds(listener: ListenerProcess, body: bytes) -> None:
    """Check 24 of the reliability list by C-STORE: refused or parsed in under 2 s, under 256 MiB in all."""
    answer, cost = offered(listener, body, f"{STUDY}.4.1")
    print(f"{len(body)} bytes: status {answer}, {cost}, peak {listener.peak_mib():.0f} MiB")
    assert cost.cpu_s < 2
    assert listener.peak_mib() < 256
    assert answer is not None
    assert (sha256(body) in stored(listener).values()) == (answer == 0)


VALUES = (
    "../../../../tmp/evil",
    "..\\..\\evil",
    "/etc/heimdallr-evil",
    "evil\0.dcm",
    "9" * 300,
    ";$(id>evil)",
    "`touch evil`",
    "1.2\r\nX-Evil: 1",
    "%2e%2e%2fevil",
    "C:\\evil",
    "'; DROP TABLE instance; --",
    "\u202eevil\U0001f480",
)
IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "AccessionNumber")
TAGS = {
    "AccessionNumber": (0x0008, 0x0050, b"SH"),
    "StudyInstanceUID": (0x0020, 0x000D, b"UI"),
    "SeriesInstanceUID": (0x0020, 0x000E, b"UI"),
    "SOPInstanceUID": (0x0008, 0x0018, b"UI"),
    "PatientID": (0x0010, 0x0020, b"LO"),
}


def with_identifier(keyword: str, value: bytes, number: int) -> bytes:
    """A small data set whose identifiers are honest but for one."""
    honest = {
        "AccessionNumber": b"A1",
        "StudyInstanceUID": f"{STUDY}.5".encode(),
        "SeriesInstanceUID": f"{STUDY}.5.1".encode(),
        "SOPInstanceUID": f"{STUDY}.5.1.{number}".encode(),
        "PatientID": b"P1",
        keyword: value,
    }
    elements = [
        explicit_element(0x0008, 0x0016, b"UI", f"{CT}\0".encode()),
        explicit_element(0x0008, 0x0060, b"CS", b"CT"),
    ]
    for name, (group, element, vr) in TAGS.items():
        text = honest[name]
        elements.append(explicit_element(group, element, vr, text + (b"\0" if vr == b"UI" else b" ") * (len(text) % 2)))
    return b"".join(sorted(elements, key=lambda item: struct.unpack_from("<HH", item)))


TRACES = re.compile(r"evil|etc|DROP|id>|X-|%|;|\\|'|9{40}|\s")
"""Of one of the values in a name."""


def send_hostile(port: int, after_each: Callable[[], object]) -> list[bytes]:
    """Each value in each identifier was answered Success; returns the data sets."""
    answers: list[int] = []
    bodies: list[bytes] = []
    for value in VALUES:
        raw = value.encode("utf-8")
        # A backslash cannot stand in an AE title (PS3.5 table 6.2-1); such a request is no request.
        calling = "".join(character for character in value if 32 <= ord(character) < 127).replace("\\", "/")[:16]
        with WirePeer(port, calling=calling) as peer:
            for keyword in IDENTIFIERS:
                body = with_identifier(keyword, raw, len(bodies))
                affected = raw if keyword == "SOPInstanceUID" else f"{STUDY}.5.1.{len(bodies)}"
                answers.append(peer.store(body, affected))
                bodies.append(body)
                after_each()
    assert len(answers) == 60
    # A strange identifier is no reason to lose an image.
    assert set(answers) == {0}
    return bodies


def test_hostile_identifiers_name_no_file_and_start_no_process(tmp_path: Path, listener: ListenerProcess) -> None:
    """Check 22 of the reliability list by C-STORE: 12 values in 5 identifiers, nothing outside the root, no process.

    The same value is the Affected SOP Instance UID of the command, and the calling AE title where it can be one.
    """
    outside = {path for path in tmp_path.rglob("*") if listener.root not in path.parents}
    around = set(tmp_path.parent.iterdir()), set(Path("/tmp").iterdir()), set(Path("/etc").iterdir())
    children: set[int] = set()
    receiving = set(listener.receiving())
    assert len(receiving) == 1

    def look() -> None:
        children.update(set(listener.children()) - receiving)

    bodies = send_hostile(listener.port, look)
    kept = stored(listener)
    assert set(map(sha256, bodies)) <= set(kept.values())
    assert all(re.fullmatch(r"[0-9.]{1,64}", uid) for uid in kept)
    assert children == set()
    assert [child for pid in receiving for child in children_of(pid)] == []
    assert set(listener.receiving()) == receiving
    assert {path for path in tmp_path.rglob("*") if listener.root not in path.parents} == outside
    new = set(Path("/tmp").iterdir()) - around[1] | set(Path("/etc").iterdir()) - around[2]
    assert [path for path in new if TRACES.search(path.name)] == []
    assert set(tmp_path.parent.iterdir()) == around[0]
    named = [path for path in listener.root.rglob("*") if TRACES.search(path.name) or path.is_symlink()]
    assert named == []


def test_hostile_identifiers_start_no_process_at_any_moment(tmp_path: Path) -> None:
    """Check 22 again where this process receives: also one that ends at once, and whichever thread starts it."""
    intake = Intake(tmp_path / "data", listener_processes=0)
    with started() as processes, intake.listening() as service:
        bodies = send_hostile(service.scp.port, lambda: None)
        assert all_committed(service)
        wait_for(lambda: len(intake.jobs()) > 0, 30, "a study to be closed")
    assert processes == []
    assert set(map(sha256, bodies)) <= set(intake.stored().values())


@pytest.mark.peers("storescu")
@pytest.mark.parametrize("magic", [b"\x7fELF\x02\x01\x01", b"MZ\x90\x00\x03"], ids=["ELF", "PE"])
def test_a_file_that_is_also_a_program_is_stored_as_none(tmp_path: Path, magic: bytes) -> None:
    """Check 27 of the reliability list by C-STORE: a preamble cannot come that way; ours is zero and nothing runs."""
    intake = Intake(tmp_path / "data")
    (path,) = write_study(tmp_path / "study", 1, STUDY)
    content = path.read_bytes()
    polyglot = magic.ljust(128, b"\x90") + content[128:]
    path.write_bytes(polyglot)
    with intake.listening() as service:
        # What is acknowledged stays in the spool, so that both places can be looked at.
        service.watcher.stop()
        service.receiver.stop(timeout_s=5)
        assert "(Success)" in storescu(service.scp.port, [path])
        spooled = list((intake.settings.spool_dir / "ready").iterdir())
        with WirePeer(service.scp.port) as peer:
            # The only other way in: a data set that begins like a program. It says nothing that makes it an image.
            assert peer.store(magic + dataset_bytes(content)[len(magic) :], "1.2.3") & 0xF000 in (0xA000, 0xC000)
        assert len(spooled) == 1
        require_harmless(spooled[0])
    with intake.listening():
        (row,) = intake.instances()
    blob = intake.blobs.path(row.blob_sha256)
    require_harmless(blob)
    assert sha256(dataset_bytes(blob.read_bytes())) == sha256(dataset_bytes(content))


def require_harmless(path: Path) -> None:
    assert path.read_bytes()[:128] == bytes(128)
    assert path.stat().st_mode & 0o111 == 0
