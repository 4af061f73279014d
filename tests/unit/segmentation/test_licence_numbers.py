from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# TotalSegmentator's licence numbers have 18 characters; academic ones start like this.
LICENCE = re.compile(rb"(?<![A-Za-z0-9_])aca_[A-Za-z0-9]{14}(?![A-Za-z0-9_])")
ASSIGNED = re.compile(rb"""(?:licen[cs]e_number|totalsegmentator_licence)["']?\s*[:=]\s*["'][A-Za-z0-9_-]{18}["']""")


def licence_numbers(content: bytes) -> list[bytes]:
    return LICENCE.findall(content) + ASSIGNED.findall(content)


@pytest.mark.parametrize("text", ["aca_" + "A1B2C3D4E5F6G7", 'license_number = "' + "x" * 18 + '"'])
def test_the_pattern_finds_a_licence_number(text: str) -> None:
    assert licence_numbers(f"before {text} after".encode())


def test_no_licence_number_is_in_the_repository() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    names = [name for name in listed.decode().split("\0") if name]
    assert names
    found = [name for name in names if (ROOT / name).is_file() and licence_numbers((ROOT / name).read_bytes())]
    assert found == []
