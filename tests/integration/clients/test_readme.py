"""The README's curl lines, run as they stand but for address, file and UID, against the real HTTP interface."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.intake import Intake, write_study
from tests.support.server import serving_intake

README = Path(__file__).resolve().parents[3] / "README.md"
STUDY = "1.2.826.0.1.3680043.9.9.1"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl: apt-get install curl")
def test_the_three_curl_lines(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "STUDY.zip", "w") as archive:
        archive.write(write_study(tmp_path / "study", 1)[0], "1.dcm")
    lines = re.findall(r"^curl .*$", README.read_text(encoding="utf-8"), re.MULTILINE)
    answers: list[tuple[str, str]] = []
    with serving_intake(intake) as base:
        for line in lines:
            words = shlex.split(line.replace("http://127.0.0.1:8001", base).replace("STUDY_UID", STUDY), comments=True)
            done = subprocess.run(
                [*words, "--silent", "--noproxy", "*", "--write-out", "\n%{http_code}"],
                cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            body, _, code = done.stdout.rpartition("\n")
            answers.append((code, body))
    upload, worklist, results = answers
    assert upload[0] == "200" and json.loads(upload[1])["study_uids"] == [STUDY]
    assert worklist[0] == "200" and [row["study_uid"] for row in json.loads(worklist[1])["studies"]] == [STUDY]
    # The study is there and has not been measured.
    assert results[0] == "409" and json.loads(results[1])["error"]["code"] == "not_ready"
