"""Random damage to real structures: whatever comes out is a header, a volume or one of our errors, in bounded time."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import IndexedInstance, group, select
from heimdallr_ray.errors import HeimdallrError
from tests.support.dicom import ct_datasets, to_bytes

MUTANTS = 120
SLICES = 10


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Bit flips, overwritten runs, cuts, insertions and swapped lengths, mostly in the header."""
    mutant = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        reach = len(mutant) if rng.random() < 0.3 else min(len(mutant), 1400)
        at = int(rng.integers(132, max(133, reach)))
        match int(rng.integers(0, 5)):
            case 0:
                mutant[at % len(mutant)] ^= 1 << int(rng.integers(0, 8))
            case 1:
                mutant[at : at + 4] = rng.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xfe\xff\0\xe0"]
                )
            case 2:
                del mutant[at : at + int(rng.integers(1, 40))]
            case 3:
                mutant[at:at] = rng.bytes(int(rng.integers(1, 40)))
            case _:
                del mutant[at + int(rng.integers(0, 3000)) :]
    return bytes(mutant)


def series_in(syntax: str) -> list[bytes]:
    made = ct_datasets(SLICES, (40, 48))
    for dataset in made:
        to_bytes(dataset)
        if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
            dataset.compress(syntax, generate_instance_uid=False)
    return [to_bytes(dataset, syntax) for dataset in made]


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_mutants_end_in_a_result_or_in_one_of_our_errors(syntax: str):
    originals = series_in(syntax)
    headers = [read_header(content) for content in originals]
    volumes = refused = 0
    for seed in range(MUTANTS):
        rng = np.random.default_rng([seed, len(syntax)])
        victim = int(rng.integers(0, SLICES))
        mutant = damaged(originals[victim], rng)
        contents = {f"{k}": content for k, content in enumerate(originals)} | {f"{victim}": mutant}
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                # Codecs warn of damage; the outcome is what counts here.
                warnings.simplefilter("ignore")
                hurt = read_header(mutant)
                index = [
                    IndexedInstance(hurt if k == victim else header, f"{k}", len(contents[f"{k}"]))
                    for k, header in enumerate(headers)
                ]
                series = group(index)
                selection = select(series)
                if selection.chosen is not None:
                    volume = assemble(selection.chosen, contents.__getitem__)
                    assert np.isfinite(volume.array).all()
                    volumes += 1
                for item in series:
                    if any(member.locator == f"{victim}" for member in item.instances):
                        assemble(item, contents.__getitem__)
        except HeimdallrError:
            refused += 1
        except Exception as error:
            pytest.fail(f"seed {seed}, syntax {syntax}: {error!r}")
        assert time.process_time() - started < 5, f"seed {seed}, syntax {syntax}"
    assert volumes + refused > 0
    assert refused > 10, "the damage is too mild to show anything"
