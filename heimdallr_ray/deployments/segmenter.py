"""Segmenter: TotalSegmentator's models, resident and warm; one study on the device, another before or after it."""

from __future__ import annotations

import os

import ray
from ray import serve

from heimdallr_ray import logs
from heimdallr_ray.deployments.app import AppArgs
from heimdallr_ray.deployments.ending import ending_with
from heimdallr_ray.deployments.memory import give_back
from heimdallr_ray.errors import BadSetting
from heimdallr_ray.queue.engine_calls import EngineCalls, EngineId, Ticket
from heimdallr_ray.queue.idle import GivesWay, IdleQueue
from heimdallr_ray.segmentation.deadline import Deadline
from heimdallr_ray.segmentation.engine import EngineInfo, SegmentationRequest, SegmentationRun


@serve.deployment(name="Segmenter")
class Segmenter:
    """A resident engine. The replica is ready only when every installed model is loaded and has run one tile."""

    def __init__(self, args: AppArgs) -> None:
        """Load and warm up; weights that are missing or changed fail the replica with the command that brings them."""
        from heimdallr_ray.catalog.database import Database
        from heimdallr_ray.clock import SystemClock
        from heimdallr_ray.deployments.attendance import Attendance, identity_of
        from heimdallr_ray.pipelines.demand import demand_of
        from heimdallr_ray.pipelines.steps import ever_wanted
        from heimdallr_ray.queue.lease import LeaseQueue
        from heimdallr_ray.queue.owners import owner_name
        from heimdallr_ray.segmentation.demo import weights_dir
        from heimdallr_ray.segmentation.notes import HOMES, refusal_told, write_notes
        from heimdallr_ray.segmentation.registry import require_needed, require_served
        from heimdallr_ray.segmentation.totalseg.device import pick_device
        from heimdallr_ray.segmentation.totalseg.engine import STUDIES_AT_ONCE, ResidentEngine
        from heimdallr_ray.segmentation.totalseg.environment import process_home

        settings = args.settings()
        logs.configure(settings, "segmenter")
        folder = settings.resolved_weights_dir or weights_dir()
        self._device = device = pick_device(settings.device)
        home = process_home(settings.run_dir / HOMES)
        with refusal_told(settings.run_dir):
            self._engine = ResidentEngine(
                folder,
                device=device,
                threads=settings.torch_threads or os.cpu_count(),
                licensed=bool(settings.totalsegmentator_licence.get_secret_value()),
                home_dir=home,
                lower_resolution=settings.lower_resolution,
                mode=settings.segmenter_mode,
                memory_mib=settings.segmenter_memory_mib,
                compile_dir=settings.run_dir / "compiled",
                start_s=settings.start_seconds,
            )
            if self._engine.info().synthetic and settings.profile != "demo":
                raise BadSetting("these weights are synthetic; only the demo profile accepts them")
            demand = demand_of(settings.measurements)
            require_needed(folder, demand)
            database, clock = Database(settings.resolved_database_url), SystemClock()
            calls = EngineCalls(database, clock)
            self._others = IdleQueue(database, LeaseQueue(database, clock, settings.lease_seconds)).others
            node = str(ray.get_runtime_context().get_node_id())
            engine = EngineId(
                owner_name(), node, identity_of(args.build, folder, f"{device} {settings.segmenter_mode}")
            )
            self._attendance = Attendance(calls, engine, STUDIES_AT_ONCE)
            self._engine.warm_up(ever_wanted(settings.measurements, settings.segmentations))
            info = self._engine.info()
            write_notes(home, info)
            require_served(demand, info.available_tasks, info.set_aside, info.over_budget)
        give_back()

    def run(
        self, request: SegmentationRequest, ticket: Ticket | None = None, until: float | None = None
    ) -> SegmentationRun:
        """Segment one study before the wall clock says `until`; errors of heimdallr_ray.errors pass through.

        What is made ahead of its study ends with MadeWay before the next tile once other work waits.
        """
        gives_way = GivesWay(self._others) if ticket is not None and ticket.ahead else None
        try:
            with self._attendance.of(ticket), ending_with(self._device):
                deadline = Deadline.before(until, gives_way=gives_way)
                with deadline.blamed():
                    return self._engine.run_plan(request.volume, request.wanted, request.earlier, deadline)
        finally:
            give_back()

    def info(self) -> EngineInfo:
        """What is loaded and where."""
        return self._engine.info()

    async def check_health(self) -> None:
        """Raises where the device is lost. A coroutine: anything else waits for one of the studies' threads."""
        from heimdallr_ray.segmentation.totalseg.device import require_device

        require_device(self._device)
