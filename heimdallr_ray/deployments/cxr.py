"""MedGemma: chest film to findings. Without a model it says so and answers nothing."""

from __future__ import annotations

from typing import Any

from ray import serve

from heimdallr_ray import logs
from heimdallr_ray.deployments.app import AppArgs


@serve.deployment(name="MedGemma")
class MedGemma:
    """Backend `none`: no MedGemma weights are installed, every request is an abstention with its reason."""

    def __init__(self, args: AppArgs) -> None:
        """Nothing to load."""
        logs.configure(args.settings(), "medgemma")
        self.build = args.build

    def read(self, instance_sha256: str) -> dict[str, Any]:
        """An abstention: no finding, no urgency, no text."""
        return {
            "instance_sha256": instance_sha256,
            "status": "abstained",
            "reason": "model_not_installed",
            "findings": None,
            "backend": "none",
            "build": self.build,
        }

    def info(self) -> dict[str, Any]:
        """What this replica can do."""
        return {"backend": "none", "model": None, "reason": "model_not_installed"}
