from __future__ import annotations

import numpy as np
import pytest
import torch

from heimdallr_ray.config import Settings
from heimdallr_ray.segmentation.totalseg import recipe, turbo
from heimdallr_ray.segmentation.totalseg.recipe import PLAIN, Caller, Recipe, steps_for
from heimdallr_ray.segmentation.totalseg.turbo import MODEL_S, START_S, seconds_for, tuned, worst_dice


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
    assert list(steps) == ["channels_last_3d", "2 tiles at once", "4 tiles at once", "compile"]
    made = PLAIN
    for step in steps.values():
        made = step(made)
    assert made == Recipe(channels_last=True, compiled=True, tiles=4)


def test_the_seconds_of_a_model_do_not_depend_on_those_before_it_and_all_together_leave_half_of_a_start() -> None:
    assert Settings.model_fields["start_seconds"].default == START_S
    assert [seconds_for(models) for models in (0, 1, 3, 6)] == [MODEL_S, MODEL_S, 10.0, 5.0]
    assert [seconds_for(models, 240.0) for models in (1, 6, 12)] == [MODEL_S, MODEL_S, 10.0]
    assert all(models * seconds_for(models) <= START_S / 2 + 1e-9 for models in range(1, 40))


class Model:
    """What `tuned` asks of a model: a tile takes the seconds that its recipe says, and a compiled one is made first."""

    device = torch.device("cuda")

    def __init__(self, tile_s: float, compiling_s: float = 0.0) -> None:
        self.tile_s, self.compiling_s = tile_s, compiling_s
        self.now_s = 0.0
        self.recipe = PLAIN
        self.uses: list[Recipe] = []

    def use(self, how: Recipe) -> None:
        self.recipe = how
        self.uses.append(how)
        self.now_s += self.compiling_s if how.compiled else 0.0

    def tile_labels(self, tile: torch.Tensor) -> np.ndarray:
        factors = {"channels_last_3d": 0.5, "2 tiles at once": 0.99, "4 tiles at once": 1.0, "compile": 0.5}
        self.now_s += self.recipe.tiles * self.tile_s * float(np.prod([factors[step] for step in self.recipe.steps]))
        changed = self.recipe.tiles == 4
        return np.roll(tile[0, 0].numpy(), int(changed)).astype(np.uint8)

    def tuned(self, seconds: float) -> turbo.Verdict:
        tile = torch.arange(8, dtype=torch.float32).reshape(1, 1, 2, 2, 2)
        return tuned(self, tile, self.now_s + seconds, lambda: self.now_s)  # type: ignore[arg-type]


def test_every_step_is_told_with_why_it_was_kept_or_not() -> None:
    verdict = Model(0.02, 8.0).tuned(30.0)
    assert verdict.recipe == Recipe(channels_last=True, compiled=True)
    kept, slower, changing, compiled = verdict.notes
    assert kept == "channels_last_3d: kept, 0.010 s instead of 0.020 s for a tile"
    assert slower.startswith("2 tiles at once: saves nothing: 0.010 s instead of 0.010 s")
    assert changing.startswith("4 tiles at once: changes labels: Dice 0.0000")
    assert compiled == "compile: kept, 0.005 s instead of 0.010 s for a tile"


def test_what_would_outlast_the_seconds_of_the_model_is_not_begun_and_says_so() -> None:
    model = Model(0.02, 8.0)
    verdict = model.tuned(5.0)
    assert verdict.recipe == Recipe(channels_last=True)
    assert verdict.notes[-1].startswith("compile: not tried, budget spent: it takes about 10.1 s, 4.")
    assert model.now_s < 1.0


def test_a_model_whose_single_tile_is_too_slow_costs_a_start_one_tile() -> None:
    model = Model(7.0)
    verdict = model.tuned(20.0)
    assert (verdict.recipe, model.now_s, model.uses) == (PLAIN, 7.0, [PLAIN])
    assert len(verdict.notes) == 4
    assert all("budget spent" in note for note in verdict.notes)


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
