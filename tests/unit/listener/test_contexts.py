"""Which transfer syntax is accepted of those that a peer offers."""

from __future__ import annotations

import pytest

from heimdallr_ray.listener.contexts import transfer_syntax_for

CT = "1.2.840.10008.5.1.4.1.1.2"
PLAIN = "1.2.840.10008.1.2.1"


@pytest.mark.parametrize("deflated", ["1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"])
def test_a_deflated_data_set_is_taken_only_where_nothing_else_is_offered(deflated: str) -> None:
    assert transfer_syntax_for(CT, [deflated, PLAIN]) == PLAIN
    assert transfer_syntax_for(CT, [deflated, "1.2.3"]) == deflated


def test_deflated_frames_are_compressed_pixels_like_others() -> None:
    frames = "1.2.840.10008.1.2.8.1"
    assert transfer_syntax_for(CT, [frames, PLAIN]) == frames
    assert transfer_syntax_for(CT, [PLAIN, frames]) == PLAIN
