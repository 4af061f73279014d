"""Leases of workers that this host has seen end: given back at once, so that the next start need not wait for them."""

from __future__ import annotations

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings
from heimdallr_ray.queue.lease import LeaseQueue
from heimdallr_ray.queue.owners import is_dead_here


def release_leases_of_the_dead(settings: Settings, database: Database, clock: Clock, *, orderly: bool) -> int:
    """How many leases of ended processes of this host are free again.

    `orderly` after a stop on purpose, which costs a study nothing; otherwise each has lost a worker, and a study that
    loses too many is set aside. Only with SQLite, whose one host this is: on a cluster a lease runs out by itself.
    """
    if database.dialect != "sqlite":
        return 0
    queue = LeaseQueue(database, clock, settings.lease_seconds)
    with database.write() as session:
        return queue.release_dead_owners(session, is_dead_here, orderly=orderly)
