"""A quick way through all open studies in an order that no image changes."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing but the index."""
    op.create_index("ix_study_state_id", "study", ["state", "id"])


def downgrade() -> None:
    """Studies stay as they are."""
    op.drop_index("ix_study_state_id", table_name="study")
