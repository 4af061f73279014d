from __future__ import annotations

import torch

from heimdallr_ray.segmentation.totalseg.gauge import measured, stored_bytes

CPU = torch.device("cpu")


def test_the_peak_is_what_is_held_at_one_time() -> None:
    given = torch.ones(1000)
    with torch.inference_mode(), measured(CPU) as peak:
        first = given * 2
        second = first + 1
        del first
        third = second * 3
        second.add_(1)
        assert float(third[0]) == 9.0
    # two results of 4,000 bytes at any time; what was there before is not counted, in place is no new memory
    assert 8000 <= peak.nbytes <= 8100


def test_a_network_is_measured_as_its_layers_run() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.LeakyReLU(inplace=True), torch.nn.Conv3d(8, 4, 3, padding=1)
    ).requires_grad_(False)
    tile = torch.zeros(1, 1, 16, 16, 16)
    with torch.inference_mode(), measured(CPU) as peak:
        network(tile)
    assert peak.nbytes == (8 + 4) * 16**3 * 4


def test_shared_weights_count_once() -> None:
    one = torch.zeros(10)
    assert stored_bytes(iter([one, one, one[:5], torch.zeros(3)])) == 40 + 12
