"""What reading costs, in processor time: generous bounds that a change for the worse by several times would break."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

import numpy as np
import pytest

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import IndexedInstance, group, select
from heimdallr_ray.dicom.synthetic import write_ct_series
from heimdallr_ray.ids import Uid

pytestmark = pytest.mark.alone


def least_cpu_s(action: Callable[[], object], times: int = 3) -> float:
    spent: list[float] = []
    for _ in range(times):
        started = time.process_time()
        action()
        spent.append(time.process_time() - started)
    return min(spent)


def test_index_selection_and_assembly_of_a_study() -> None:
    hu = np.random.default_rng(0).integers(-1024, 2000, (320, 240, 260), dtype=np.int16)
    written = write_ct_series(
        hu,
        np.diag([1.2, 1.2, 1.5, 1.0]),
        study_uid=Uid.derived("study"),
        series_uid=Uid.derived("series"),
        patient_id="DEMO",
        patient_name="DEMO^ONE",
        study_datetime=datetime(2026, 1, 2, 3, 4, 5),
    )
    contents = {str(k): content for k, (_, content) in enumerate(written)}
    assert least_cpu_s(lambda: [read_header(content) for content in contents.values()]) < 260 * 0.001
    index = [IndexedInstance(read_header(content), key, len(content)) for key, content in contents.items()]
    assert least_cpu_s(lambda: select(group(index))) < 0.2
    (series,) = group(index)
    assert least_cpu_s(lambda: assemble(series, contents.__getitem__)) < 0.6
