"""What the models of a replica may take together, and what each of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Need:
    """Memory of one model on its device, measured when it was warmed up.

    Attributes:
        weights: bytes of its parameters and buffers.
        activations: bytes of the tiles that go through it at once, at their peak. What an image takes beside that (its
            logits, above all) depends on the image and is not counted; where it does not fit, `memory.Road` helps.
    """

    weights: int
    activations: int

    @property
    def together(self) -> int:
        """Bytes of the model by itself."""
        return self.weights + self.activations

    @property
    def mib(self) -> float:
        """The same in MiB."""
        return self.together / MIB


def leaving(needs: Sequence[tuple[int, Need]], coming: Need, limit: int | None) -> tuple[int, ...]:
    """Which models leave so that another one fits, those used longest ago first.

    One model works at a time, so weights add up and of the activations only the largest counts.

    Args:
        needs: number and need of the models that are there, the one used longest ago first.
        coming: need of the model that is to be there too.
        limit: bytes that all may take; None: any.

    Returns:
        Numbers from `needs`; all of them where `coming` does not fit beside any.
    """
    if limit is None:
        return ()
    for n_leaving in range(len(needs)):
        staying = [need for _, need in needs[n_leaving:]]
        weights = coming.weights + sum(need.weights for need in staying)
        activations = max(coming.activations, *(need.activations for need in staying))
        if weights + activations <= limit:
            return tuple(number for number, _ in needs[:n_leaving])
    return tuple(number for number, _ in needs)
