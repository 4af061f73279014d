"""Objects without Study Instance UID that come again belong to the study that has them; equal bytes are no conflict."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from heimdallr_ray.catalog.types import UtcDateTime

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Images that share their UID with equal bytes alone are not flagged any more."""
    op.create_table(
        "uid_alias",
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("stands_for", sa.String(length=64), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
    op.execute(
        "UPDATE instance SET sop_uid_conflict = false WHERE sop_uid_conflict IS true AND NOT EXISTS "
        "(SELECT 1 FROM instance AS other "
        "WHERE other.sop_uid = instance.sop_uid AND other.blob_sha256 <> instance.blob_sha256)"
    )


def downgrade() -> None:
    """Flags stay as they are: they say what is true."""
    op.drop_table("uid_alias")
