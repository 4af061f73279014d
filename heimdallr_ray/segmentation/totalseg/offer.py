"""What a replica can run: what is installed, may run here and fits into the memory budget, and what stands in."""

from __future__ import annotations

from collections.abc import Mapping

from heimdallr_ray.segmentation import tasks
from heimdallr_ray.segmentation.asked import askable
from heimdallr_ray.segmentation.planner import Wanted, in_order
from heimdallr_ray.segmentation.specs import RESIDENT
from heimdallr_ray.segmentation.totalseg import memory
from heimdallr_ray.segmentation.totalseg.inventory import Inventory
from heimdallr_ray.segmentation.totalseg.store import ModelStore


class Offer:
    """The tasks of a registry held against the budget, of which more is known with every model that was loaded."""

    def __init__(self, inventory: Inventory, store: ModelStore, *, lower_resolution: bool) -> None:
        """`lower_resolution`: a coarser task may answer for one that fits nowhere, see `memory.COARSER`."""
        self._inventory, self._store, self._lower_resolution = inventory, store, lower_resolution

    @property
    def available_tasks(self) -> tuple[str, ...]:
        """Tasks whose models, the rough one for cropping included, are in the registry and inside the budget."""
        over = self.over_budget
        return tuple(name for name in self._inventory.available_tasks if name not in over)

    @property
    def licensed_tasks(self) -> tuple[str, ...]:
        """Available tasks that may run here: open, or licensed, or with our own synthetic weights."""
        over = self.over_budget
        return tuple(name for name in self._inventory.licensed_tasks if name not in over)

    @property
    def over_budget(self) -> Mapping[str, str]:
        """Tasks that the budget refuses and for which none stands in, to words that say so."""
        refused = {name: self._refusal(name) for name in self._inventory.available_tasks}
        return {name: words for name, words in refused.items() if words and self.stand_in(name) is None}

    def stand_in(self, name: str) -> str | None:
        """The coarser task that answers for one that fits nowhere, where the site allows it."""
        coarser = memory.COARSER.get(name) if self._lower_resolution else None
        able = coarser is not None and coarser in self._inventory.licensed_tasks and not self._refusal(coarser)
        return coarser if able else None

    def may_need(self, wanted: tuple[Wanted, ...] | None) -> tuple[str, ...]:
        """Tasks that some image can make run for `wanted` (None: all that can), and what stands in for refused ones."""
        licensed = self.licensed_tasks
        named = licensed if wanted is None else askable(wanted, licensed)
        coarser = (self.stand_in(name) for name in named if self._refusal(name))
        return in_order((*named, *(one for one in coarser if one)))

    def _refusal(self, name: str) -> str:
        """Why the budget refuses a model of a resident task; empty where it does not."""
        refused = self._store.refused if tasks.TASKS[name].backend == RESIDENT else {}
        return next((refused[one.dataset_id] for one in tasks.models_of(name) if one.dataset_id in refused), "")
