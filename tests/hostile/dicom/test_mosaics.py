"""Damaged mosaics: their places, their volume, or one of our errors; never a place that the protocol does not name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from heimdallr_ray.dicom.fallback import convert
from heimdallr_ray.dicom.mosaic import Mosaic, mosaic_of
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import IndexedInstance, Series, group
from heimdallr_ray.errors import HeimdallrError
from tests.hostile.dicom.test_mutations import damaged
from tests.support.dicom import to_bytes
from tests.support.mosaics import mosaic_dataset

T = TypeVar("T")

SLICES = np.random.default_rng(4).integers(0, 4000, (7, 12, 16)).astype(np.uint16)
CONTENT = to_bytes(mosaic_dataset(SLICES, (-40.0, -33.0, 12.5), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
PROTOCOL = CONTENT.index(b"### ASCCONV BEGIN"), CONTENT.index(b"### ASCCONV END")


def outcome(action: Callable[[], T]) -> T | None:
    try:
        return action()
    except HeimdallrError:
        return None


def protocol_damaged(rng: np.random.Generator) -> bytes:
    mutant = bytearray(CONTENT)
    for _ in range(int(rng.integers(1, 8))):
        mutant[int(rng.integers(*PROTOCOL))] = int(rng.choice(list(b"0123456789.-+eE[]= \tSagCorTra")))
    return bytes(mutant)


@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere_in_the_header_is_a_typed_refusal_or_harmless(seed: int) -> None:
    whole = mosaic_of(CONTENT, read_header(CONTENT))
    told = refused = 0
    for number in range(100):
        mutant = damaged(CONTENT, np.random.default_rng([seed, number]))
        found: Mosaic | None = outcome(lambda mutant=mutant: mosaic_of(mutant, read_header(mutant)))
        refused += found is None
        told += found is not None
        if found is not None:
            assert found.firsts_lps.shape[1] == 3
            assert np.isfinite(found.firsts_lps).all()
            assert (found.rows * found.columns) <= whole.rows * whole.columns * 16
    assert refused > 5
    assert told > 5


def test_a_protocol_that_lies_is_never_believed() -> None:
    """A volume comes out only where the converter, which does not read the protocol for this, puts each slice there."""
    places = mosaic_of(CONTENT, read_header(CONTENT)).firsts_lps
    refused = 0
    for number in range(25):
        mutant = protocol_damaged(np.random.default_rng(number))
        header = read_header(mutant)
        (series,) = group([IndexedInstance(header, "mutant", len(mutant))])
        volume = outcome(lambda series=series, mutant=mutant: volume_of(series, mutant))
        refused += volume is None
        if volume is not None:
            assert np.allclose(volume[2, 3] + 5.0 * np.arange(7), places[:, 2], atol=0.02)
    assert refused > 3


def volume_of(series: Series, content: bytes) -> np.ndarray:
    return convert(series, lambda _: content, "mosaic").affine_ras
