from __future__ import annotations

from pathlib import Path

import pytest

from bench.segment_peers import Case, contest
from heimdallr_ray.segmentation.demo import phantom, weights_dir


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_engine_api_and_command_line_take_turns_on_one_image_and_agree(tmp_path: Path) -> None:
    body = phantom.make(2001, (6.0, 6.0, 8.0), (150.0, 390.0))
    case = Case("a small body, coarse", weights_dir(), "total_fastest", (body.hu, body.affine_ras), ("--fastest",), 1)
    found = contest(case, tmp_path / case.folder_name)
    assert found.unlike == 0
    for spent in (found.engine, found.api, found.cli):
        assert 0 < spent.forward_s < spent.total_s
        assert spent.outside_s == pytest.approx(spent.total_s - spent.forward_s)
    assert (tmp_path / case.folder_name / "cli.nii.gz").stat().st_size > 0
