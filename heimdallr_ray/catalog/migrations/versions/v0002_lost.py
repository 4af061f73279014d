"""Lost workers are counted apart from failed attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Jobs that wait or run have lost nobody yet; what they failed stays counted as attempts."""
    op.add_column("job", sa.Column("lost", sa.Integer(), nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    """Forget how many workers were lost."""
    op.drop_column("job", "lost")
