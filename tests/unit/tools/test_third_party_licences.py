from __future__ import annotations

import pytest

from tools import third_party_licences as licences
from tools.third_party_licences import LicenceProblem, Package


@pytest.mark.python("3.11")
def test_the_list_is_what_is_installed() -> None:
    assert licences.OUTPUT.read_text(encoding="utf-8") == licences.page(), "run `make licences`"


@pytest.mark.parametrize(
    "licence",
    ["GPL-3.0", "GPLv2", "AGPL-3.0-only", "GNU General Public License v3 (GPLv3)", "MIT AND GPL-2.0-only", "gpl v3.0"],
)
def test_a_copyleft_package_is_refused(licence: str) -> None:
    with pytest.raises(LicenceProblem, match="bad"):
        licences.refuse_copyleft([Package("good", "1", "MIT"), Package("bad", "1", licence)])


@pytest.mark.parametrize("licence", ["LGPL-3.0-only", "MIT OR GPL-3.0", "MPL-2.0 AND MIT"])
def test_a_licence_that_leaves_a_choice_or_reaches_only_the_library_passes(licence: str) -> None:
    licences.refuse_copyleft([Package("fine", "1", licence)])


def test_nothing_copyleft_is_compiled_into_the_pages() -> None:
    packages = licences.web_packages()
    assert packages
    assert [package.name for package in packages if licences.COPYLEFT.search(package.licence)] == []


def test_a_separate_program_is_still_needed_by_something_installed() -> None:
    assert set(licences.SEPARATE_PROGRAMS) <= {package.name for package in licences.runtime_packages()}
