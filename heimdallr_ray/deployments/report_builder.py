"""ReportBuilder: drafts a report. Without a report writer it says so and drafts nothing."""

from __future__ import annotations

from typing import Any

from ray import serve

from heimdallr_ray import logs
from heimdallr_ray.deployments.app import AppArgs


@serve.deployment(name="ReportBuilder")
class ReportBuilder:
    """Backend `none`: no report writer is configured, every request is an abstention with its reason."""

    def __init__(self, args: AppArgs) -> None:
        """Nothing to load."""
        logs.configure(args.settings(), "report_builder")
        self.build = args.build

    def draft(self, study_uid: str) -> dict[str, Any]:
        """An abstention: no sentence is written."""
        return {
            "study_uid": study_uid,
            "status": "abstained",
            "reason": "writer_not_configured",
            "text": None,
            "backend": "none",
            "build": self.build,
        }

    def info(self) -> dict[str, Any]:
        """What this replica can do."""
        return {"backend": "none", "reason": "writer_not_configured"}
