"""One digest for an object, its blob's; which bytes a power cut may still take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NAMES = {"uq": "%(table_name)s_%(column_0_N_name)s_key"}
"""As PostgreSQL names a unique constraint by itself."""
_OLD = ("study_id", "sop_uid", "dataset_sha256")
_NEW = ("study_id", "sop_uid", "blob_sha256")


def _name(columns: tuple[str, ...]) -> str:
    return f"instance_{'_'.join(columns)}_key"


def upgrade() -> None:
    """Blobs that were stored before keep the digest that they have."""
    with op.batch_alter_table("instance", naming_convention=_NAMES) as batch:
        batch.drop_constraint(_name(_OLD), type_="unique")
        batch.drop_column("dataset_sha256")
        batch.add_column(sa.Column("durable", sa.Boolean(), nullable=False, server_default=sa.true()))
        batch.create_unique_constraint(_name(_NEW), list(_NEW))


def downgrade() -> None:
    """The digest of the data set alone is not known any more; the blob's takes its place."""
    with op.batch_alter_table("instance", naming_convention=_NAMES) as batch:
        batch.add_column(sa.Column("dataset_sha256", sa.String(length=64), nullable=False, server_default=""))
        batch.drop_constraint(_name(_NEW), type_="unique")
        batch.drop_column("durable")
    op.execute("UPDATE instance SET dataset_sha256 = blob_sha256")
    with op.batch_alter_table("instance", naming_convention=_NAMES) as batch:
        batch.create_unique_constraint(_name(_OLD), list(_OLD))
