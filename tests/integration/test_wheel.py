"""What a user installs: the wheel can start, and holds nothing of others that is not listed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from heimdallr_ray.segmentation.demo import weights_dir

ROOT = Path(__file__).resolve().parents[2]
SERVE_CONFIG = "heimdallr_ray/deployments/serve_config.yaml"
MAX_WHEEL_BYTES = 64 * 1024 * 1024
COPYLEFT = re.compile(rb"GNU (Affero )?General Public License|\bAGPL-3|(?<!L)GPL-[23]\.0|(?<!L)GPLv[23]")


def tracked(folder: str = ".") -> list[str]:
    """Names of the files that git tracks below `folder`."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", folder]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=30).stdout
    return [name for name in listing.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel that `pip install .` builds from a bare checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    done = subprocess.run(build, cwd=checkout, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (path,) = out.glob("heimdallr_ray-*.whl")
    assert path.stat().st_size < MAX_WHEEL_BYTES
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel was unpacked to, as pip does it."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def ask(installed: Path, program: str) -> str:
    """What `program` prints, run on the unpacked wheel with no checkout in sight."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEIMDALLR_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=installed,
        env=environment | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_web_pages_are_in(wheel: zipfile.ZipFile) -> None:
    page = wheel.read("heimdallr_ray/dashboard/static/index.html").decode("utf-8")
    named = re.findall(r"(?:src|href)=\"\.?/?([^\":]+\.(?:js|css))\"", page)
    assert any(name.endswith(".js") for name in named)
    for name in named:
        inside = name.removeprefix("static/")
        assert wheel.getinfo(f"heimdallr_ray/dashboard/static/{inside}").file_size > 0


def test_the_demo_weights_are_in(wheel: zipfile.ZipFile) -> None:
    folder = weights_dir()
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert any(path.suffix == ".pth" for path in files)
    for path in files:
        inside = path.relative_to(ROOT).as_posix()
        assert wheel.getinfo(inside).file_size == path.stat().st_size, inside


def test_an_installed_package_finds_its_serve_config(installed: Path) -> None:
    asked = "from heimdallr_ray.operations.application import serve_config_path; print(serve_config_path().resolve())"
    path = Path(ask(installed, asked).strip())
    assert path == (installed / SERVE_CONFIG).resolve()
    assert path.read_bytes() == (ROOT / "serve_config.yaml").read_bytes()


def test_an_installed_package_finds_its_pages_and_demo_weights(installed: Path) -> None:
    asked = """
import json
from heimdallr_ray.dashboard import static_dir
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.weights import any_synthetic, verify
print(json.dumps([str(static_dir() / "index.html"), str(weights_dir()), any_synthetic(verify(weights_dir()))]))
"""
    page, weights, synthetic = json.loads(ask(installed, asked))
    assert Path(page).is_file() and Path(page).is_relative_to(installed)
    assert Path(weights).is_relative_to(installed) and synthetic


def test_an_installed_package_migrates_a_database(installed: Path, tmp_path: Path, wheel: zipfile.ZipFile) -> None:
    versions = [name for name in tracked("heimdallr_ray/catalog/migrations") if name.endswith((".py", ".mako"))]
    assert any("/versions/v0001" in name for name in versions)
    assert set(versions) <= set(wheel.namelist())
    url = f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    asked = f"""
from heimdallr_ray.catalog.database import Database
database = Database({url!r})
database.migrate()
database.check()
print("schema holds")
"""
    assert ask(installed, asked).strip() == "schema holds"


def test_nothing_else_is_in(wheel: zipfile.ZipFile) -> None:
    ours = set(tracked("heimdallr_ray"))
    strange = [
        name
        for name in wheel.namelist()
        if name not in ours | {SERVE_CONFIG}
        and not name.startswith("heimdallr_ray/dashboard/static/")
        and not re.match(r"heimdallr_ray-[^/]+\.dist-info/", name)
    ]
    assert not strange
    assert {name for name in ours if name.endswith(".py")} <= set(wheel.namelist())


def test_no_copyleft_text_is_in_but_in_the_list_of_what_is_installed_beside(wheel: zipfile.ZipFile) -> None:
    found = [
        name
        for name in wheel.namelist()
        if not name.endswith("THIRD_PARTY_LICENSES.md") and COPYLEFT.search(wheel.read(name))
    ]
    assert not found


def test_the_licences_and_the_command_are_in(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    for licence in ("LICENSE", "NOTICE", "THIRD_PARTY_LICENSES.md"):
        assert any(name.endswith(f".dist-info/licenses/{licence}") for name in names), licence
    (entry_points,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
    assert "heimdallr = heimdallr_ray.cli:main" in wheel.read(entry_points).decode("utf-8")
