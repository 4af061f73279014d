"""Documents lead somewhere: links resolve, and nothing points to a document that a cloner does not have."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECTION = re.compile(r"docs/architecture\.md, (?:(decision) )?(\d+)")
# Upper case, or a number of a tracker that is not ours to show. Texts of others speak of their own.
ELSEWHERE = re.compile(r"ARCHITECTURE(\.md)?\b|\b[Ii]ssues? #?\d")
TEXTS_OF_OTHERS = {"THIRD_PARTY_LICENSES.md", "LICENSE", "requirements.lock", "dashboard/package-lock.json"}


def texts() -> dict[str, str]:
    """Every tracked file that is text and ours."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=30).stdout.decode()
    names = [name for name in listing.split("\0") if name and name not in TEXTS_OF_OTHERS and (ROOT / name).is_file()]
    contents = {name: (ROOT / name).read_bytes() for name in names if not name.startswith("dashboard/licences/")}
    return {name: content.decode("utf-8") for name, content in contents.items() if b"\0" not in content}


def test_every_link_between_documents_resolves() -> None:
    documents = {name: text for name, text in texts().items() if name.endswith(".md")}
    broken: list[str] = []
    for name, text in documents.items():
        for target in LINK.findall(text):
            if (
                not re.match(r"https?:|mailto:|#", target)
                and not (ROOT / name).parent.joinpath(target.partition("#")[0]).exists()
            ):
                broken.append(f"{name}: {target}")
    assert len(documents) > 5 and not broken


def test_the_index_names_every_document() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {target.partition("#")[0] for target in LINK.findall(index)}
    documents = {name.removeprefix("docs/") for name in texts() if re.match(r"docs/.*\.md$", name)} - {"index.md"}
    assert documents <= linked


def test_nothing_points_to_a_document_that_is_not_here() -> None:
    ours = "tests/unit/test_docs.py"
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts().items()
        if name != ours
        for number, line in enumerate(text.splitlines(), 1)
        if ELSEWHERE.search(line)
    ]
    assert not found


def test_sections_and_decisions_that_code_cites_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    cited = {match for content in texts().values() for match in SECTION.findall(content)}
    assert ("decision", "11") in cited and ("", "3") in cited
    for kind, number in cited:
        assert re.search(rf"^\| {number} \|" if kind else rf"^## {number}\.", text, re.MULTILINE), (kind, number)
