"""The audit chain: append-only, also for whoever speaks to the database past this package."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from heimdallr_ray.catalog.types import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_WORDS = "the audit chain is append-only"
_REFUSE = f"SELECT RAISE(ABORT, '{_WORDS}')"

_SQLITE = (
    f"CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN {_REFUSE}; END",
    f"CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN {_REFUSE}; END",
    "CREATE TRIGGER audit_head_no_shrink BEFORE UPDATE ON audit_head WHEN NEW.entries < OLD.entries "
    f"BEGIN {_REFUSE}; END",
    f"CREATE TRIGGER audit_head_no_delete BEFORE DELETE ON audit_head BEGIN {_REFUSE}; END",
    # INSERT OR REPLACE deletes without asking a trigger for deletion.
    *(
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "  # noqa: S608 - our own names
        f"WHEN NEW.id IN (SELECT id FROM {table}) BEGIN {_REFUSE}; END"
        for table in ("audit", "audit_head")
    ),
)
_POSTGRESQL = (
    "CREATE FUNCTION heimdallr_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{_WORDS}'; END $$",
    "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit "
    "FOR EACH ROW EXECUTE FUNCTION heimdallr_audit_refuse()",
    "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION heimdallr_audit_refuse()",
    "CREATE TRIGGER audit_head_no_shrink BEFORE UPDATE ON audit_head FOR EACH ROW "
    "WHEN (NEW.entries < OLD.entries) EXECUTE FUNCTION heimdallr_audit_refuse()",
    "CREATE TRIGGER audit_head_no_delete BEFORE DELETE ON audit_head "
    "FOR EACH ROW EXECUTE FUNCTION heimdallr_audit_refuse()",
    "CREATE TRIGGER audit_head_no_truncate BEFORE TRUNCATE ON audit_head "
    "FOR EACH STATEMENT EXECUTE FUNCTION heimdallr_audit_refuse()",
)


def upgrade() -> None:
    """An empty chain, whose rows the database itself lets nobody change or delete."""
    op.create_table(
        "audit",
        sa.Column("id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("actor_kind", sa.String(length=16), nullable=False),
        sa.Column("actor_name", sa.String(length=64), nullable=False),
        sa.Column("actor_address", sa.String(length=64), nullable=False),
        sa.Column("study_id", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("prev_mac", sa.String(length=64), nullable=False),
        sa.Column("mac", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_audit_actor_name", "audit", ["actor_name"], unique=False)
    op.create_index("ix_audit_study_id", "audit", ["study_id"], unique=False)
    op.create_table(
        "audit_head",
        sa.Column("id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("seal", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    for statement in _POSTGRESQL if op.get_bind().dialect.name == "postgresql" else _SQLITE:
        op.execute(statement)


def downgrade() -> None:
    """Forget the chain. The triggers go with their tables."""
    op.drop_table("audit_head")
    op.drop_index("ix_audit_study_id", table_name="audit")
    op.drop_index("ix_audit_actor_name", table_name="audit")
    op.drop_table("audit")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION heimdallr_audit_refuse()")
