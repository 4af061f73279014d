"""dcm2niix in a process with limits: one object in under a name of ours, one image out by the converter's own report.

Whatever its report says beyond the usual lines is taken for a doubt, and the image is not.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom import limits
from heimdallr_ray.errors import DecoderUnavailable, NotAVolume

_WHEEL: Final = "dcm2niix"
_NAME: Final = "volume"
_ARGUMENTS: Final = (
    *("-f", _NAME, "-o", "out", "-z", "n", "-b", "n", "-d", "0", "-w", "2", "-i", "n", "-x", "n"),
    "in",
)
"""A name of ours, uncompressed, no sidecar, no sub-folders, never overwrite, skip and crop nothing."""

_NOT_STARTED: Final = 127
"""As a shell says it of a program that it cannot start."""
_LIMITED: Final = (
    "import json, os, resource, sys\n"
    "bounds, command = json.loads(sys.argv[1]), sys.argv[2:]\n"
    "for name, value in bounds.items():\n"
    "    resource.setrlimit(getattr(resource, name), (value, value))\n"
    "try:\n"
    "    os.execv(command[0], command)\n"
    "except OSError:\n"
    f"    os._exit({_NOT_STARTED})\n"
)
_VERSION: Final = re.compile(r"Chris Rorden's dcm2niiX version (v[\w.]+)")
_CONVERTED: Final = re.compile(r"Convert (\d+) DICOM as (.+) \((\d+)x(\d+)x(\d+)x(\d+)\)")
_HARMLESS: Final = re.compile(
    r"Found \d+ DICOM file\(s\)|Conversion required [\d.]+ seconds .*|Warning: Empty protocol name\(s\) .*"
    r"|::autoBids:.*|.*\bslice timing\b.*",
    re.IGNORECASE,
)
"""Names, and the times of slices within one volume, do not concern us. Every other word is taken for a doubt."""
_DOUBTS: Final = (
    ("spatial orientation", "the orientation is missing"),
    ("slice direction", "the direction of the slices is not known"),
    ("spatial matrix", "the geometry makes no sense"),
    ("interslice distance", "the distance between slices varies"),
    ("orientation varies", "the orientation varies"),
    ("patient position", "the position of the patient is missing"),
    ("fragments", "the compressed pixels are in an unusual form"),
    ("transfer syntax", "the compression is not known"),
)
"""Its words in ours: what it writes may hold text of the object, which may name a person."""


@dataclass(frozen=True)
class Converted:
    """What came out.

    Attributes:
        array: `[i, j, k]` in the converter's order, int16 or float32, scaled.
        affine_ras: voxel to RAS mm.
        version: of the converter.
    """

    array: NDArray[Any]
    affine_ras: NDArray[np.float64]
    version: str


def installed() -> tuple[str, ...]:
    """The command of the installed wheel.

    Raises:
        DecoderUnavailable: the wheel, or the program in it, is not there.
    """
    try:
        program = str(cast("Any", importlib.import_module(_WHEEL)).bin)
    except (ImportError, AttributeError, OSError) as error:
        raise DecoderUnavailable("the converter dcm2niix is not installed") from error
    if not os.access(program, os.X_OK):
        raise DecoderUnavailable("the program of the converter dcm2niix is missing or may not be run")
    return (program,)


def run(content: bytes, pixel_bytes: int, code: str, *, program: Sequence[str] | None = None) -> Converted:
    """The one image that the converter makes of one object.

    Args:
        content: the object.
        pixel_bytes: that its header declares, which bounds what may be written.
        code: why the converter is asked; the refusal where it does no better.
        program: another command than that of the installed wheel.

    Raises:
        NotAVolume: `code`: it failed, took too long, made several images, or was not sure.
        DecoderUnavailable: it is not installed, or does not start.
    """
    command = installed() if program is None else program
    with ExitStack() as opened:
        try:
            name = opened.enter_context(TemporaryDirectory(prefix="heimdallr-convert-", ignore_cleanup_errors=True))
            folder = Path(name)
            (folder / "in").mkdir()
            (folder / "out").mkdir()
            (folder / "in" / "000001.dcm").write_bytes(content)
        except OSError as error:
            raise DecoderUnavailable("the converter's files cannot be written") from error
        report = _report(folder, pixel_bytes, code, command)
        version, shape = _understood(report, code)
        made = sorted(path.name for path in (folder / "out").iterdir())
        if made != [f"{_NAME}.nii"]:
            raise NotAVolume(code, f"dcm2niix wrote {len(made)} files instead of one")
        array, affine = _image(folder / "out" / made[0], shape, code)
    return Converted(array, affine, version)


def _report(folder: Path, pixel_bytes: int, code: str, program: Sequence[str]) -> str:
    bounds = {
        "RLIMIT_AS": limits.CONVERTER_MEMORY_BYTES,
        "RLIMIT_CPU": limits.CONVERTER_SECONDS,
        # Float samples take twice the bytes of 16-bit ones.
        "RLIMIT_FSIZE": 4 * pixel_bytes + (1 << 20),
        "RLIMIT_CORE": 0,
    }
    command = [sys.executable, "-I", "-S", "-c", _LIMITED, json.dumps(bounds), *program, *_ARGUMENTS]
    path = folder / "report"
    try:
        with path.open("wb") as report:
            done = subprocess.run(  # noqa: S603 - our own interpreter and the converter's wheel, names of ours
                command,
                cwd=folder,
                env={"HOME": str(folder), "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=report,
                stderr=subprocess.STDOUT,
                timeout=limits.CONVERTER_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise NotAVolume(code, f"dcm2niix took longer than {limits.CONVERTER_SECONDS} s") from error
    except OSError as error:
        raise DecoderUnavailable("the converter's process does not start") from error
    with path.open("rb") as report:
        text = report.read(limits.CONVERTER_REPORT_BYTES + 1)
    if done.returncode == _NOT_STARTED:
        raise DecoderUnavailable("the converter dcm2niix does not start")
    if done.returncode != 0 or len(text) > limits.CONVERTER_REPORT_BYTES:
        raise NotAVolume(code, f"dcm2niix failed ({done.returncode})")
    return text.decode("utf-8", "replace")


def _understood(report: str, code: str) -> tuple[str, tuple[int, int, int]]:
    """Version, and columns, rows and slices of the one image."""
    version, images = "", list[tuple[int, int, int]]()
    for line in filter(None, (line.strip() for line in report.splitlines())):
        if found := _VERSION.match(line):
            version = found[1]
        elif found := _CONVERTED.fullmatch(line):
            objects, volumes = int(found[1]), int(found[6])
            if objects != 1 or found[2] != f"out/{_NAME}" or volumes != 1:
                raise NotAVolume(code, f"dcm2niix made {volumes} volumes of {objects} objects")
            images.append((int(found[3]), int(found[4]), int(found[5])))
        elif not _HARMLESS.fullmatch(line):
            raise NotAVolume(code, f"dcm2niix is not sure: {_doubt(line)}")
    if not version or len(images) != 1:
        raise NotAVolume(code, f"dcm2niix made {len(images)} images")
    return version, images[0]


def _doubt(line: str) -> str:
    return next((ours for its, ours in _DOUBTS if its in line.lower()), "a message that is not known here")


_UNREADABLE: Final[tuple[type[Exception], ...]] = (
    cast("Any", nib).filebasedimages.ImageFileError,
    cast("Any", nib).wrapstruct.WrapStructError,
    cast("Any", nib).spatialimages.HeaderDataError,
)


class _Image(Protocol):
    """The part of a nibabel image that is used."""

    affine: NDArray[np.float64]
    dataobj: Any
    shape: tuple[int, ...]

    def get_data_dtype(self) -> np.dtype[Any]: ...


def _image(path: Path, shape: tuple[int, int, int], code: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    try:
        image = cast("_Image", cast("Any", nib).Nifti1Image.from_bytes(path.read_bytes()))
        found = tuple(image.shape[:3])
        dtype = image.get_data_dtype()
        if found != shape or int(np.prod(image.shape)) != int(np.prod(shape)) or dtype.kind not in "iuf":
            raise NotAVolume(code, f"dcm2niix wrote {dtype} {image.shape}")
        scaled = np.asarray(image.dataobj).reshape(shape)
    except (*_UNREADABLE, ValueError, OSError) as error:
        raise NotAVolume(code, "what dcm2niix wrote cannot be read") from error
    if not np.isfinite(scaled).all():
        raise NotAVolume("not_finite", "dcm2niix wrote values that are no numbers")
    bounds = np.iinfo(np.int16)
    whole = bounds.min <= scaled.min() and scaled.max() <= bounds.max and bool((scaled == np.rint(scaled)).all())
    affine: NDArray[np.float64] = np.asarray(image.affine, np.float64)
    return scaled.astype(np.int16 if whole else np.float32), affine
