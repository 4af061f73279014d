"""How an instance lies in the store."""

from __future__ import annotations

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing yet to change."""


def downgrade() -> None:
    """Nothing to take back."""
