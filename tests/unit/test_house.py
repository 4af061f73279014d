"""What has to hold for the repository as a whole."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "heimdallr_ray"
MAX_FILE_BYTES = 1024 * 1024
MAX_MODULE_LINES = 500
TARGETS = ("setup", "demo", "up", "lint", "test-fast", "test", "test-all", "bench")
# Written in parts, so that this file does not find itself.
MACHINE_PATHS = [
    "/" + "work" + "/",
    "/" + "root" + "/",
    "/" + "home" + r"/[a-z]",
    "/" + "Users" + r"/[A-Za-z]",
    "/" + "opt" + "/(pypi|wheels)",
]
REGISTRIES = ["pypi" + r"\.org", "pythonhosted" + r"\.org", "registry" + r"\.npmjs", "download" + r"\.pytorch"]
INDEX_OPTIONS = ["--(extra-)?index" + "-url", "--find" + "-links", "--trusted" + "-host"]
SECRETS = [
    "-----BEGIN [A-Z ]*PRIVATE" + " KEY",
    "AKIA" + "[0-9A-Z]{16}",
    "gh[pousr]_" + "[A-Za-z0-9]{30}",
    "hf_" + "[A-Za-z0-9]{30}",
    "sk-ant-" + "[A-Za-z0-9]{10}",
    r"\baca_" + r"[A-Z0-9]{14}\b",
]
UNFINISHED = re.compile(
    r"TODO|FIXME|XXX|raise NotImplementedError|\bfor now\b|\bsimplified\b|\bmock(s|ed)?\b|"
    r"\bstub(bed)?\b|\bplaceholder\b",
    re.IGNORECASE,
)


def tracked() -> list[Path]:
    """Every file that git tracks and that is there."""
    # A checkout may belong to another user than the one who runs the tests.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=30).stdout
    return [ROOT / name for name in listing.decode().split("\0") if name and (ROOT / name).is_file()]


def text_files() -> Iterator[tuple[str, str]]:
    """Name and text of each tracked file that is text."""
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content:
            yield str(path.relative_to(ROOT)), content.decode("utf-8")


def modules() -> list[Path]:
    """Every tracked Python module of the package."""
    return [path for path in tracked() if path.suffix == ".py" and PACKAGE in path.parents]


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("pattern", [*MACHINE_PATHS, *REGISTRIES, *INDEX_OPTIONS, *SECRETS])
def test_no_tracked_file_holds_an_address_or_a_secret_of_one_machine(pattern: str) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in text_files()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found


def test_no_tracked_file_is_large_but_the_demo_weights() -> None:
    large = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.stat().st_size > MAX_FILE_BYTES and "weights" not in path.relative_to(ROOT).parts
    ]
    assert not large


def test_nothing_in_the_package_is_unfinished() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in modules()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not found


def test_modules_are_one_idea_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in modules()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_MODULE_LINES
    }
    assert not long


def test_every_module_of_the_package_postpones_annotations() -> None:
    without = [
        str(path.relative_to(ROOT))
        for path in modules()
        if len(ast.parse(text := path.read_text(encoding="utf-8")).body) > 1
        and "from __future__ import annotations" not in text
    ]
    assert not without


def logged(source: str) -> Iterator[tuple[int, str]]:
    """Line and event of each call of a module's logger; what is no text of its own stands as its source."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in ("log", "_log", "logger")
            and node.func.attr in ("debug", "info", "warning", "error", "exception", "critical", "log")
        ):
            event = node.args[node.func.attr == "log"]
            yield node.lineno, str(event.value) if isinstance(event, ast.Constant) else ast.unparse(event)


def test_log_events_are_dotted_names_without_values() -> None:
    name = re.compile(r"[a-z][a-z_]*(\.[a-z][a-z_]*)+")
    assert [event for _, event in logged('log.log(20, "a b")\n_log.info(f"x.{y}")')] == ["a b", "f'x.{y}'"]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {event}"
        for path in modules()
        for line, event in logged(path.read_text(encoding="utf-8"))
        if not name.fullmatch(event)
    ]
    assert not found


def test_each_suppression_names_its_rule() -> None:
    blanket = re.compile(r"#\s*noqa(?!: ?[A-Z])|#\s*type: ignore(?!\[)|#\s*pyright: (ignore(?!\[)|basic)")
    found = [
        f"{name}:{number}"
        for name, text in text_files()
        if name.endswith(".py") and name != "tests/unit/test_house.py"
        for number, line in enumerate(text.splitlines(), 1)
        if blanket.search(line)
    ]
    assert not found


def lock() -> dict[str, tuple[Version, int]]:
    """Version and number of hashes of each package in requirements.lock."""
    locked: dict[str, tuple[Version, int]] = {}
    text = re.sub(r"\s*\\\n\s*", " ", (ROOT / "requirements.lock").read_text(encoding="utf-8"))
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            pinned = re.match(r"([a-z0-9-]+)(?:\[[^]]*\])?==(\S+)", line)
            assert pinned, f"not a pinned requirement: {line[:80]}"
            locked[pinned[1]] = (Version(pinned[2]), line.count("--hash=sha256:"))
    return locked


def test_the_lock_has_a_hash_for_each_package_and_no_address() -> None:
    without = [name for name, (_, hashes) in lock().items() if hashes == 0]
    assert not without
    assert not re.search(r"https?://|file:", (ROOT / "requirements.lock").read_text(encoding="utf-8"))


def test_the_lock_fits_pyproject() -> None:
    locked, settings = lock(), project()["project"]
    for text in [*settings["dependencies"], *settings["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name}: run `make lock`"
        assert locked[name][0] in requirement.specifier, f"{name} {locked[name][0]}: run `make lock`"


def test_no_gpl_decoder_comes_in_by_the_back_door() -> None:
    assert "pylibjpeg-libjpeg" not in lock()


def test_each_dependency_says_why_it_is_there() -> None:
    silent = [
        line.strip()
        for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
        if re.match(r'  "[A-Za-z][A-Za-z0-9-]+(\[.*\])?(==|>=)', line) and "#" not in line
    ]
    assert not silent


def test_the_web_lock_has_hashes_and_no_address() -> None:
    packages = json.loads((ROOT / "dashboard" / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert [name for name, entry in packages.items() if "resolved" in entry] == []
    assert [name for name, entry in packages.items() if name and "integrity" not in entry] == []


def make_targets() -> dict[str, list[str]]:
    """Names of the targets with a recipe and the commands of each."""
    targets: dict[str, list[str]] = {}
    current = ""
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        if head := re.match(r"([a-z-]+):", line):
            current = head[1]
            targets[current] = []
        elif line.startswith("\t") and current:
            targets[current].append(line.strip())
        else:
            current = ""
    return targets


def test_the_makefile_has_its_targets_and_each_does_the_set_up() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(TARGETS) <= set(make_targets())
    for target in TARGETS[1:]:
        assert re.search(rf"^{target}: setup\b", text, re.MULTILINE), target


def test_readme_shows_only_targets_that_are_there_and_its_test_command_is_what_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\bmake ([a-z-]+)", readme))
    assert shown <= set(make_targets()) | {"help"}
    first = re.search(r"```bash\n(.*?)```", readme, re.DOTALL)
    assert first
    commands = [line.split("#")[0].strip() for line in first[1].splitlines()]
    assert commands == ["make demo", "make test"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in ci if line.startswith("make ")] == ["make lint", "make test"]


def test_ci_script_runs_with_peers_required_and_real_images_where_they_are() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)
    for line in ("export CI=true", "export REQUIRE_PEERS=1", "export HEIMDALLR_TEST_DATA="):
        assert line in text
    assert text.index("tools/install_peers.sh") < text.index("\nmake lint")


def test_serve_config_names_each_deployment_with_its_scaling() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    (application,) = config["applications"]
    deployments = {entry["name"]: entry for entry in application["deployments"]}
    assert set(deployments) == {"Ingress", "StudyConsumer", "Segmenter", "MedGemma", "ReportBuilder"}
    for name, entry in deployments.items():
        scaling = entry["autoscaling_config"]
        assert 0 <= scaling["min_replicas"] <= scaling["max_replicas"], name
        assert scaling["max_replicas"] >= 1, name
    assert config["http_options"]["host"] == "127.0.0.1"


def test_the_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert project()["project"]["license"] == "Apache-2.0"


def test_the_version_is_one() -> None:
    from heimdallr_ray import __version__

    assert project()["project"]["version"] == __version__
