"""A receiver as the completion watcher knows it, for tests that write rows themselves."""

from __future__ import annotations


class NothingInHand:
    """A receiver that has committed all it had."""

    blind = False

    def flush(self, timeout_s: float) -> bool:
        return True

    def pending_study_uids(self) -> frozenset[str]:
        return frozenset()
