"""The built web pages carry the licence text of every library that may be inside them."""

from __future__ import annotations

import re

import pytest

from heimdallr_ray.dashboard import static_dir
from tools.third_party_licences import Package, web_packages

HEADING = re.compile(r"(?P<name>\S+) (?P<version>\S+) \((?P<licence>.+)\)")
SHORTEST_LICENCE_CHARACTERS = 500


@pytest.fixture(scope="module")
def notices() -> dict[Package, str]:
    """The sections of NOTICES.txt: which package, and its text."""
    folder = static_dir()
    assert folder is not None, "the web pages are not built: run `make setup`"
    sections: dict[Package, str] = {}
    for section in (folder / "NOTICES.txt").read_text(encoding="utf-8").split(f"\n\n{'-' * 80}\n\n"):
        heading, _, text = section.partition("\n\n")
        found = HEADING.fullmatch(heading)
        assert found, heading
        sections[Package(found["name"], found["version"], found["licence"])] = text
    return sections


def test_every_production_package_of_the_lock_is_named(notices: dict[Package, str]) -> None:
    assert sorted(notices, key=lambda package: package.name) == web_packages()


def test_the_pages_hold_no_compiled_library_whose_notice_no_package_carries() -> None:
    """A WebAssembly module brings C libraries that package-lock.json does not name."""
    folder = static_dir()
    assert folder is not None
    scripts = {path.name: path.read_text(encoding="utf-8") for path in (folder / "assets").glob("*.js")}
    # The first bytes of a module, in base64, and the only door through which a browser runs one.
    assert [name for name, text in scripts.items() if "AGFzbQ" in text or "WebAssembly" in text] == []
    assert len(scripts) >= 2
    assert list(folder.rglob("*.wasm")) == []


def test_each_has_its_text_with_its_copyright_line(notices: dict[Package, str]) -> None:
    short = [package.name for package, text in notices.items() if len(text) < SHORTEST_LICENCE_CHARACTERS]
    assert short == []
    assert [package.name for package, text in notices.items() if "copyright" not in text.lower()] == []
