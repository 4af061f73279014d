"""Segmenter: TotalSegmentator's models, resident and warm, one study at a time."""

from __future__ import annotations

import os

from ray import serve

from heimdallr_ray.deployments.app import AppArgs
from heimdallr_ray.deployments.memory import give_back
from heimdallr_ray.errors import BadSetting
from heimdallr_ray.segmentation.engine import EngineInfo, SegmentationRequest, SegmentationRun


@serve.deployment(name="Segmenter")
class Segmenter:
    """A resident engine. The replica is ready only when every installed model is loaded and has run one tile."""

    def __init__(self, args: AppArgs) -> None:
        """Load and warm up; weights that are missing or changed fail the replica with the command that brings them."""
        from heimdallr_ray.segmentation.demo import weights_dir
        from heimdallr_ray.segmentation.registry import require_needed
        from heimdallr_ray.segmentation.totalseg.device import pick_device
        from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
        from heimdallr_ray.segmentation.totalseg.environment import process_home

        settings = args.settings()
        folder = settings.resolved_weights_dir or weights_dir()
        self._engine = ResidentEngine(
            folder,
            device=pick_device(settings.device),
            threads=settings.torch_threads or os.cpu_count(),
            licensed=bool(settings.totalsegmentator_licence.get_secret_value()),
            home_dir=process_home(settings.run_dir / "totalsegmentator"),
            lower_resolution=settings.lower_resolution,
        )
        if self._engine.info().synthetic and settings.profile != "demo":
            raise BadSetting("these weights are synthetic; only the demo profile accepts them")
        require_needed(folder)
        self._engine.warm_up()
        give_back()

    def run(self, request: SegmentationRequest) -> SegmentationRun:
        """Segment one study; errors of heimdallr_ray.errors pass through."""
        try:
            return self._engine.run_plan(request.volume, request.wanted, request.earlier)
        finally:
            give_back()

    def info(self) -> EngineInfo:
        """What is loaded and where."""
        return self._engine.info()

    def check_health(self) -> None:
        """Raises where the models are gone."""
        self._engine.info()
