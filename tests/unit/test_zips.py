"""The limits of an archive hold at their last byte: what the directory declares, and what really comes out."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from heimdallr_ray.errors import BadArchive, TooLarge
from heimdallr_ray.zips import RATIO_FREE_BYTES, ArchiveLimits, Budget, check_directory, check_end_record

LIMIT = 1_000_003
LIMITS = ArchiveLimits(max_entries=3, max_unpacked_bytes=LIMIT)
WIDE = ArchiveLimits(max_entries=3, max_unpacked_bytes=1 << 40)


def directory(*sizes: int) -> list[zipfile.ZipInfo]:
    """Entries side by side that unpack to `sizes`, each of 10 packed bytes."""
    members: list[zipfile.ZipInfo] = []
    for index, size in enumerate(sizes):
        member = zipfile.ZipInfo(f"{index}.dcm")
        member.file_size, member.compress_size, member.header_offset = size, 10, 100 * index
        members.append(member)
    return members


def check(limits: ArchiveLimits, *sizes: int, archive_bytes: int = 1000) -> int:
    return len(check_directory(directory(*sizes), 1000, archive_bytes, limits))


def test_a_directory_may_declare_as_much_as_the_limit_and_no_byte_more() -> None:
    assert check(LIMITS, LIMIT) == 1
    assert check(LIMITS, 1, LIMIT - 1) == 2
    with pytest.raises(TooLarge, match="unpacks to more than"):
        check(LIMITS, LIMIT + 1)
    with pytest.raises(TooLarge, match="unpacks to more than"):
        check(LIMITS, 1, LIMIT)


def test_a_directory_may_have_as_many_entries_as_the_limit_and_not_one_more() -> None:
    assert check(LIMITS, 1, 1, 1) == 3
    with pytest.raises(TooLarge, match="more than 3 entries"):
        check(LIMITS, 1, 1, 1, 1)


def test_above_a_size_that_is_free_the_ratio_counts() -> None:
    packed = RATIO_FREE_BYTES // WIDE.max_ratio + 1
    assert check(WIDE, WIDE.max_ratio * packed, archive_bytes=packed) == 1
    with pytest.raises(TooLarge, match="implausible multiple"):
        check(WIDE, WIDE.max_ratio * packed + 1, archive_bytes=packed)
    assert check(WIDE, RATIO_FREE_BYTES, archive_bytes=1) == 1
    with pytest.raises(TooLarge, match="implausible multiple"):
        check(WIDE, RATIO_FREE_BYTES + 1, archive_bytes=1)


def test_an_archive_without_its_end_is_cut_off_and_another_file_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("1.dcm", bytes(1000))
    whole = (tmp_path / "whole.zip").read_bytes()
    check_end_record(tmp_path / "whole.zip", LIMITS)
    for content, words in ((whole[:-1], "the ZIP archive is cut off"), (whole[1:-1], "not a ZIP archive")):
        (tmp_path / "other.zip").write_bytes(content)
        with pytest.raises(BadArchive, match=f"^{words}$"):
            check_end_record(tmp_path / "other.zip", LIMITS)


@pytest.mark.parametrize("pieces", [(LIMIT,), (1, LIMIT - 1)])
def test_as_many_bytes_as_the_limit_come_out(pieces: tuple[int, ...]) -> None:
    budget = Budget(LIMITS, archive_bytes=LIMIT)
    for size in pieces:
        assert sum(map(len, budget.chunks(io.BytesIO(b"x" * size)))) == size
    assert budget.left == 0
    assert budget.read(io.BytesIO(), 1) == b""
    with pytest.raises(TooLarge, match="more than allowed"):
        budget.read(io.BytesIO(b"x"), 1)


def test_one_byte_more_than_the_limit_does_not_come_out() -> None:
    with pytest.raises(TooLarge, match="more than allowed"):
        list(Budget(LIMITS, archive_bytes=LIMIT).chunks(io.BytesIO(b"x" * (LIMIT + 1))))
    with pytest.raises(TooLarge, match="more than allowed"):
        Budget(LIMITS, archive_bytes=LIMIT).read(io.BytesIO(b"x" * (LIMIT + 1)), LIMIT + 1)


def test_a_budget_is_the_smaller_of_the_limit_and_what_the_ratio_allows() -> None:
    packed = RATIO_FREE_BYTES // WIDE.max_ratio + 1
    assert Budget(WIDE, archive_bytes=packed).left == WIDE.max_ratio * packed
    assert Budget(WIDE, archive_bytes=1).left == RATIO_FREE_BYTES
    assert Budget(LIMITS, archive_bytes=1 << 30).left == LIMIT
