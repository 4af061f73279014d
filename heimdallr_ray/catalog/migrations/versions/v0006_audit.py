"""The audit chain."""

from __future__ import annotations

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing yet to change."""


def downgrade() -> None:
    """Nothing to take back."""
