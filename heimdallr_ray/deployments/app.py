"""The typed builder that serve_config.yaml names, and what every replica needs to start."""

# No `from __future__ import annotations` here: Ray Serve reads the builder's annotation to make typed arguments.

from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from heimdallr_ray.config import Settings, load, load_effective


class AppArgs(BaseModel):
    """Arguments of the application in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    build: str
    """Build id; a changed one redeploys everything."""
    settings_file: str = ""
    """File that the supervisor wrote; empty: heimdallr.toml and HEIMDALLR_* of the node."""

    def settings(self) -> Settings:
        """The settings of this installation."""
        return load_effective(Path(self.settings_file)) if self.settings_file else load()


def build(args: AppArgs) -> Application:
    """The application: Ingress in front, StudyConsumer behind it, and the three model deployments."""
    from heimdallr_ray.deployments.consumer import StudyConsumer
    from heimdallr_ray.deployments.cxr import MedGemma
    from heimdallr_ray.deployments.ingress import Ingress
    from heimdallr_ray.deployments.report_builder import ReportBuilder
    from heimdallr_ray.deployments.segmenter import Segmenter

    segmenter = Segmenter.bind(args)
    consumer = StudyConsumer.bind(args, segmenter)
    return Ingress.bind(args, consumer, segmenter, MedGemma.bind(args), ReportBuilder.bind(args))
