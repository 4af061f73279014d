"""Series keep every line of the selection."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Series that were judged before have a code and a reason only."""
    op.add_column("series", sa.Column("selection", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Forget the lines."""
    op.drop_column("series", "selection")
