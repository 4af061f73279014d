"""The figures of the intake in the words of Prometheus.

Names and labels are a contract with a site's dashboards (docs/operations/metrics.md); a test holds them. Labels are
closed sets: places of processes, doors, reasons, states. No AE title, address, study or patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from heimdallr_ray.listener.figures import STORE_BOUNDS_S, SYNC_BOUNDS_S, HistogramValues
from heimdallr_ray.listener.overview import IntakeCounts, SpoolState
from heimdallr_ray.listener.room import Room
from heimdallr_ray.listener.snapshots import Snapshot

PREFIX = "heimdallr_intake"


class IntakeCollector(Collector):
    """What is told in one answer."""

    def __init__(
        self, processes: Sequence[Snapshot], counts: IntakeCounts | None, spool: SpoolState, room: Room | None
    ) -> None:
        """`counts` and `room` are None where database or disk do not answer: what is not known is not told."""
        self._processes = processes
        self._counts = counts
        self._spool = spool
        self._room = room

    def collect(self) -> Iterable[Metric]:
        """All families."""
        yield from self._of_processes()
        yield from self._times()
        yield from self._of_installation()

    def _of_processes(self) -> Iterator[Metric]:
        told = self._processes
        up = GaugeMetricFamily(f"{PREFIX}_process_up", "1: the process lives and works.", labels=["process"])
        started = GaugeMetricFamily(
            f"{PREFIX}_process_start_time_seconds", "When the process began to count.", labels=["process"]
        )
        for one in told:
            up.add_metric([one.place], 1.0 if one.state.healthy else 0.0)
            started.add_metric([one.place], one.started_at.timestamp())
        yield up
        yield started
        instances = CounterMetricFamily(
            f"{PREFIX}_instances", "Objects that were acknowledged.", labels=["process", "door"]
        )
        sizes = CounterMetricFamily(f"{PREFIX}_bytes", "Bytes of these objects.", labels=["process", "door"])
        refused = CounterMetricFamily(
            f"{PREFIX}_refused",
            "Refused: connections, associations, open connections (cut), objects (store), HTTP requests.",
            labels=["process", "door", "what", "reason"],
        )
        ended = CounterMetricFamily(
            f"{PREFIX}_associations_closed", "Associations that have ended.", labels=["process", "how"]
        )
        for one in told:
            for door, number in one.figures.stored.items():
                instances.add_metric([one.place, door], number)
            for door, number in one.figures.stored_bytes.items():
                sizes.add_metric([one.place, door], number)
            for door, reasons in one.figures.refused.items():
                for about, number in reasons.items():
                    what, _, reason = about.rpartition(".")
                    refused.add_metric([one.place, door, what or "request", reason], number)
            for how, number in one.figures.associations_closed.items():
                ended.add_metric([one.place, how], number)
        yield from (instances, sizes, refused, ended)
        yield self._counter(
            "associations_opened", "Accepted associations.", lambda one: one.figures.associations_opened
        )
        yield self._counter("committed", "Acknowledged objects that became rows.", lambda one: one.state.committed)
        yield self._counter(
            "duplicates", "Objects that were there before, byte for byte.", lambda one: one.state.duplicates
        )
        yield self._counter(
            "conflicts", "Objects under a known SOP Instance UID with other bytes.", lambda one: one.state.conflicts
        )
        yield self._counter(
            "commit_failures", "Groups of objects that had to be tried again.", lambda one: one.state.commit_failures
        )
        yield self._counter(
            "notes_dropped",
            "Notes of associations and for the audit chain that were dropped while the database did not answer.",
            lambda one: one.state.notes_dropped,
        )
        yield self._gauge("associations_open", "Associations that are open.", lambda one: len(one.state.open))
        yield self._gauge(
            "waiting", "Acknowledged objects in memory, about to become rows.", lambda one: one.state.waiting
        )

    def _times(self) -> Iterator[Metric]:
        stores = HistogramMetricFamily(
            f"{PREFIX}_store_seconds", "From an object's request to its answer.", labels=["process", "door"]
        )
        syncs = HistogramMetricFamily(
            f"{PREFIX}_fsync_seconds",
            "How long the disk took to make an object and its name durable.",
            labels=["process"],
        )
        for one in self._processes:
            for door, values in one.figures.store_seconds.items():
                stores.add_metric([one.place, door], _buckets(STORE_BOUNDS_S, values), values.seconds)
            values = one.figures.sync_seconds
            syncs.add_metric([one.place], _buckets(SYNC_BOUNDS_S, values), values.seconds)
        yield from (stores, syncs)

    def _of_installation(self) -> Iterator[Metric]:
        spool = self._spool
        yield _single("spool_depth", "Acknowledged objects that are no rows yet.", spool.depth)
        yield _single("spool_oldest_seconds", "Age of the oldest of them; 0: none.", spool.oldest_s or 0.0)
        yield _single("quarantine_depth", "Acknowledged objects that could not become rows.", spool.quarantined)
        if self._room is not None:
            yield _single(
                "disk_used_ratio", "Of the data folder's disk, as df shows it.", self._room.used_percent / 100
            )
            yield _single("disk_free_bytes", "Left for us on that disk.", self._room.free_bytes)
        if self._counts is None:
            return
        studies = GaugeMetricFamily(f"{PREFIX}_studies", "Studies that images may still come to.", labels=["state"])
        for state, number in self._counts.studies.items():
            studies.add_metric([state], number)
        yield studies
        commitments = self._counts.commitments
        yield _single(
            "commitment_depth", "Requests for storage commitment that wait for their report.", commitments.depth
        )
        yield _single("commitment_failing", "Of these, with a report that failed.", commitments.failing)
        yield _single("commitment_given_up", "Requests in all that were given up.", commitments.given_up)
        oldest = commitments.oldest_asked_at
        yield _single(
            "commitment_oldest_time_seconds",
            "When the oldest of them was asked; 0: none waits.",
            oldest.timestamp() if oldest else 0.0,
        )
        ahead = CounterMetricFamily(
            f"{PREFIX}_speculations", "Labels made ahead of their studies, by what became of that.", labels=["outcome"]
        )
        for outcome, number in self._counts.speculations.items():
            ahead.add_metric([outcome], number)
        yield ahead
        yield _single("audit_entries", "Length of the audit chain.", self._counts.audit_entries)

    def _counter(self, name: str, help_: str, of: Callable[[Snapshot], int]) -> Metric:
        family = CounterMetricFamily(f"{PREFIX}_{name}", help_, labels=["process"])
        for one in self._processes:
            family.add_metric([one.place], of(one))
        return family

    def _gauge(self, name: str, help_: str, of: Callable[[Snapshot], int]) -> Metric:
        family = GaugeMetricFamily(f"{PREFIX}_{name}", help_, labels=["process"])
        for one in self._processes:
            family.add_metric([one.place], of(one))
        return family


def _single(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_, value=value)


def _buckets(bounds: Sequence[float], values: HistogramValues) -> list[tuple[str, float]]:
    ends = [*(repr(bound) for bound in bounds), "+Inf"]
    return [(end, float(total)) for end, total in zip(ends, accumulate(values.counts), strict=True)]


def expose(collector: IntakeCollector, accept: str) -> tuple[str, bytes]:
    """Content type and body, in the form that the header `Accept` asks for: OpenMetrics, or Prometheus' own."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(registry)
