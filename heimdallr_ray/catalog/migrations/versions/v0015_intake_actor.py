"""Who stood behind an upload or a STOW request, so that a closed study can tell it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of earlier requests the audit chain alone knows it."""
    op.add_column("association", sa.Column("actor_kind", sa.String(length=16), nullable=True))
    op.add_column("association", sa.Column("actor_name", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("association", "actor_name")
    op.drop_column("association", "actor_kind")
