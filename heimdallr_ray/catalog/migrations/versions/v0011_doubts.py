"""How the last transfer had ended when a study was closed, and a quick way to images whose UID is contested."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of studies that were closed before, it is not known."""
    op.add_column("study", sa.Column("last_transfer", sa.String(length=8), nullable=True))
    op.create_index(
        "ix_instance_conflict",
        "instance",
        ["study_id"],
        sqlite_where=sa.text("sop_uid_conflict IS 1"),
        postgresql_where=sa.text("sop_uid_conflict IS true"),
    )


def downgrade() -> None:
    """Forget it."""
    op.drop_index("ix_instance_conflict", table_name="instance")
    op.drop_column("study", "last_transfer")
