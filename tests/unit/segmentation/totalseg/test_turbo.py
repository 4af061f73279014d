from __future__ import annotations

import numpy as np
import pytest
import torch

from heimdallr_ray.segmentation.totalseg import recipe
from heimdallr_ray.segmentation.totalseg.recipe import PLAIN, Caller, Recipe, steps_for
from heimdallr_ray.segmentation.totalseg.turbo import worst_dice


def test_the_worst_label_is_told() -> None:
    one = np.array([0, 1, 1, 1, 2, 2, 2, 2], np.uint8)
    other = np.array([0, 1, 1, 1, 2, 2, 2, 0], np.uint8)
    assert worst_dice(one, other) == (2, pytest.approx(2 * 3 / 7))
    assert worst_dice(one, one) == (1, 1.0)


def test_a_label_that_only_one_of_them_tells_has_no_overlap() -> None:
    none, some = np.zeros(9, np.uint8), np.array([0] * 8 + [7], np.uint8)
    assert worst_dice(none, some) == worst_dice(some, none) == (7, 0.0)


def test_background_alone_is_no_evidence() -> None:
    assert worst_dice(np.zeros(9, np.uint8), np.zeros(9, np.uint8)) is None


def test_a_recipe_names_its_steps_and_its_mode() -> None:
    assert (PLAIN.mode, PLAIN.steps) == ("exact", ())
    made = Recipe(channels_last=True, half=True, compiled=True, tiles=4)
    assert made.mode == "turbo"
    assert made.steps == ("channels_last_3d", "bfloat16", "compile", "4 tiles at once")


def test_bfloat16_is_tried_where_the_cpu_has_matrix_units_only(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(recipe, "multiplies_bfloat16", lambda: False)
    assert list(steps_for(cpu)) == ["channels_last_3d"]
    monkeypatch.setattr(recipe, "multiplies_bfloat16", lambda: True)
    assert list(steps_for(cpu)) == ["channels_last_3d", "bfloat16"]


def test_an_accelerator_tries_tiles_at_once_and_keeps_its_own_half_precision() -> None:
    steps = steps_for(torch.device("cuda"))
    assert list(steps) == ["channels_last_3d", "compile", "2 tiles at once", "4 tiles at once"]
    made = PLAIN
    for step in steps.values():
        made = step(made)
    assert made == Recipe(channels_last=True, compiled=True, tiles=4)


def network() -> torch.nn.Module:
    torch.manual_seed(1)
    layers = torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.InstanceNorm3d(8), torch.nn.Conv3d(8, 3, 1)
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.mark.parametrize("how", [Recipe(channels_last=True), Recipe(half=True), Recipe(channels_last=True, half=True)])
def test_every_recipe_calls_the_same_network(how: Recipe) -> None:
    tiles = torch.randn(2, 1, 8, 9, 10, generator=torch.Generator().manual_seed(2))
    expected = Caller(network(), torch.device("cpu"), PLAIN)(tiles)
    made = Caller(network(), torch.device("cpu"), how)(tiles)
    assert made.is_contiguous() or not how.channels_last
    assert (made.dtype == torch.bfloat16) == how.half
    torch.testing.assert_close(made.float(), expected, atol=0.05 if how.half else 1e-5, rtol=0)


def test_hooks_still_see_each_call_of_a_compiled_network() -> None:
    module = network()
    seen: list[int] = []
    module.register_forward_hook(lambda *_: seen.append(1))
    Caller(module, torch.device("cpu"), Recipe(compiled=True))
    assert "forward" in module.__dict__
    module.forward = type(module).forward.__get__(module)
    module(torch.zeros(1, 1, 8, 8, 8))
    Caller(module, torch.device("cpu"), PLAIN)
    assert "forward" not in module.__dict__
    assert seen == [1]
