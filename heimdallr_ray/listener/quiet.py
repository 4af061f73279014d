"""Which series have come to rest while their study is still open, so that their labels may be made ahead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from heimdallr_ray.catalog.ahead import SeriesCount, Wish
from heimdallr_ray.catalog.closing import OpenStudy, Version

SERIES_QUIET_S = 5.0
"""A series to which nothing has come for so long is taken to be whole, although others of its study may still come."""
MAX_PER_EPOCH = 16
"""Series of one epoch of a study of which labels are wished for."""
MODALITIES = frozenset({"CT", "MR"})
"""Of images that models read."""


@dataclass(frozen=True)
class _Seen:
    version: Version
    series: dict[str, tuple[SeriesCount, float]]
    """By UID; since when, by the monotonic clock, it has not grown."""
    wished: frozenset[str] = frozenset()


class SeriesWatch:
    """What one process has seen of the series of studies that are open. Not safe for several threads."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def see(self, study: OpenStudy, read: Callable[[], Sequence[SeriesCount]], at: float, *, ended: bool) -> list[Wish]:
        """The series that are whole now as far as can be seen, but for those wished for before; largest first.

        Args:
            study: as it is.
            read: its series in the catalog; called only where the study has changed.
            at: now, by the monotonic clock, seconds.
            ended: nobody sends to the study, and it has been quiet for a moment: then each of its series is at rest.
        """
        before = self._seen.get(study.id)
        if before is not None and before.version[0] != study.epoch:
            before = None
        if before is None or before.version != study.version:
            known = {} if before is None else before.series
            series = {one.series_uid: (one, _since(known.get(one.series_uid), one, at)) for one in read()}
            before = _Seen(study.version, series, frozenset() if before is None else before.wished)
            self._seen[study.id] = before
        largest_first = sorted(before.series.values(), key=lambda one: -one[0].n_images)
        return [
            Wish(study.id, study.epoch, one.series_uid, one.n_images)
            for one, since in largest_first
            if one.series_uid not in before.wished
            and one.modality in MODALITIES
            and (ended or at - since >= SERIES_QUIET_S)
        ][: max(0, MAX_PER_EPOCH - len(before.wished))]

    def wished(self, wish: Wish) -> None:
        """The wish is in the queue, or will never be; it is not made again."""
        seen = self._seen.get(wish.study_id)
        if seen is not None:
            self._seen[wish.study_id] = _Seen(seen.version, seen.series, seen.wished | {wish.series_uid})

    def end(self, study_ids: Collection[str]) -> None:
        """Studies other than these are forgotten."""
        self._seen = {id_: seen for id_, seen in self._seen.items() if id_ in study_ids}


def _since(known: tuple[SeriesCount, float] | None, now: SeriesCount, at: float) -> float:
    return at if known is None or known[0].n_images != now.n_images else known[1]
