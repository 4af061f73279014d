"""The moment of a kill during a send: drawn from a seed, and during the send whatever the machine does meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

WAIT_S = 120.0
LONGEST_PAUSE_S = 0.03
"""An image is acknowledged within about 5 to 30 ms: the kill falls anywhere in its handling."""


class DuringSend:
    """Kills after a drawn number of acknowledgements and a drawn pause; the last image is not offered before that."""

    def __init__(self, seed: object, images: int, associations: int = 1) -> None:
        """The moment for a send of `images` images over `associations`; the same seed is the same moment."""
        chance = random.Random(f"during-send-{seed}")
        self.seed, self.images = seed, images
        self._held_at = images - associations
        """Each of the other associations may have one more image on its way, so that one is left."""
        self.after = chance.randint(1, self._held_at)
        self.pause_s = chance.uniform(0.0, LONGEST_PAUSE_S)
        self.done = 0
        """Images acknowledged so far."""
        self._reached, self._killed = threading.Event(), threading.Event()

    def on_progress(self, done: int, _total: int) -> None:
        """For `send_folder`: called in the sender's thread after each acknowledgement."""
        self.done = done
        if done >= self.after:
            self._reached.set()
        if done >= self._held_at:
            self._killed.wait(WAIT_S)

    def kill(self, kill: Callable[[], None]) -> None:
        """`kill` is called during the send; it returns when the process is gone."""
        assert self._reached.wait(WAIT_S), f"{self.done} of {self.images} acknowledged, {self.after} awaited"
        time.sleep(self.pause_s)
        kill()
        done = self.done
        self._killed.set()
        print(
            f"seed {self.seed}: killed {1000 * self.pause_s:.1f} ms after {self.after} acknowledgements, "
            f"at {done} of {self.images}"
        )
        assert 0 < done < self.images
