"""How a network is called: exactly as upstream does, or in a faster way whose labels may differ in single voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import llvmlite.binding as llvm
import torch

from heimdallr_ray.segmentation.engine import EXACT, TURBO


@dataclass(frozen=True)
class Recipe:
    """What is done besides calling the network on one tile after the other.

    Attributes:
        channels_last: weights and tiles lie in memory with the channel as the fastest axis.
        half: bfloat16 where the CPU multiplies matrices of it.
        compiled: torch.compile.
        tiles: so many tiles at once.
    """

    channels_last: bool = False
    half: bool = False
    compiled: bool = False
    tiles: int = 1

    @property
    def mode(self) -> str:
        """`exact`, or `turbo` where anything is done."""
        return EXACT if self == PLAIN else TURBO

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done, in words of torch."""
        named = {"channels_last_3d": self.channels_last, "bfloat16": self.half, "compile": self.compiled}
        batch = (f"{self.tiles} tiles at once",) if self.tiles > 1 else ()
        return (*(name for name, done in named.items() if done), *batch)


PLAIN: Final = Recipe()
"""Upstream's way, bit for bit."""

Step = Callable[[Recipe], Recipe]

PREPARED_S: Final[Mapping[str, float]] = {"compile": 10.0}
"""Seconds that a step takes at least before the first tile goes through it; none where it is not named."""

_CHANNELS_LAST: Final[Step] = lambda made: replace(made, channels_last=True)  # noqa: E731
_HALF: Final[Step] = lambda made: replace(made, half=True)  # noqa: E731
_COMPILED: Final[Step] = lambda made: replace(made, compiled=True)  # noqa: E731


def _tiles(number: int) -> Step:
    return lambda made: replace(made, tiles=number)


def multiplies_bfloat16() -> bool:
    """True where the CPU has matrix units for it (AMX); elsewhere it costs labels and saves little."""
    features = cast("Mapping[str, bool]", cast(Any, llvm).get_host_cpu_features())
    return features.get("amx-bf16", False) and features.get("amx-tile", False)


def steps_for(device: torch.device) -> Mapping[str, Step]:
    """What may help on a device, by name, in the order in which it is tried; each builds on those that were kept."""
    steps: dict[str, Step] = {"channels_last_3d": _CHANNELS_LAST}
    if device.type == "cpu":
        if multiplies_bfloat16():
            steps["bfloat16"] = _HALF
        # Tiles of a batch share nothing on a CPU: one alone fills its caches. Compiled code saved 0 to 11 % of a tile
        # there, for 10 to 20 s of the start for each model, and a study of the demo once took twice as long by it.
        return steps
    # Compiled code is made for one number of tiles: it comes last, so that it is made once.
    return steps | {"2 tiles at once": _tiles(2), "4 tiles at once": _tiles(4), "compile": _COMPILED}


class Caller:
    """Calls one network by a recipe.

    Raises (on construction and on calls):
        RuntimeError, OSError, ImportError: torch.compile found no compiler, or failed.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device, recipe: Recipe) -> None:
        """The network's weights are laid out as the recipe wants them."""
        self.network, self.device, self.recipe = network, device, recipe
        if recipe.channels_last:
            cast(Any, network).to(memory_format=torch.channels_last_3d)
        # the module itself stays what is called, so that hooks around it still see each call
        plain: Any = type(network).forward
        forward: Any = plain.__get__(network)
        if recipe.compiled:
            network.forward = cast(Any, torch.compile)(forward, dynamic=False)
        elif "forward" in network.__dict__:
            del network.__dict__["forward"]

    def precision(self) -> AbstractContextManager[object]:
        """Float16 where the device has it and upstream uses it; bfloat16 where the recipe says so."""
        if self.device.type == "cuda":
            return torch.autocast("cuda", enabled=True)
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.recipe.half else nullcontext()

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """`[n, 1, *patch]` to `[n, heads, *patch]` where the network is, in the precision it was computed in."""
        if self.recipe.channels_last:
            tiles = tiles.contiguous(memory_format=torch.channels_last_3d)
        with ExitStack() as stack:
            stack.enter_context(self.precision())
            logits = cast(torch.Tensor, self.network(tiles))
        return logits.contiguous() if self.recipe.channels_last else logits
