"""All settings in one frozen object."""

from __future__ import annotations

from pathlib import Path

from heimdallr_ray.config.computing import ComputingSettings
from heimdallr_ray.config.installation import InstallationSettings
from heimdallr_ray.config.intake import IntakeSettings
from heimdallr_ray.config.operating import OperatingSettings


# The last base comes first in `model_fields`, and so on the page of settings.
class Settings(OperatingSettings, ComputingSettings, IntakeSettings, InstallationSettings):
    """Everything that can be set. Each field is documented in docs/settings.md (a test compares)."""

    @property
    def resolved_audit_key_file(self) -> Path:
        """Where the key of the audit chain lies."""
        return self.audit_key_file or self.data_dir / "audit.key"

    @property
    def resolved_weights_dir(self) -> Path | None:
        """The folder of the models; None: the packaged demo weights."""
        if self.weights_dir is not None:
            return self.weights_dir
        return None if self.profile == "demo" else self.data_dir / "weights"
