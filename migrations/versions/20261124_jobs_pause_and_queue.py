"""jobs pause, queue by tenant and memory; exports of variants"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "5d1b7e20c94a"
down_revision = "5d1f0a7c2e94"

NEW = [
    ("fine_tuning_jobs", "pause_requested", sa.Boolean(), "false"),
    ("fine_tuning_jobs", "priority", sa.BigInteger(), "0"),
    ("fine_tuning_jobs", "memory_bytes", sa.BigInteger(), "0"),
    ("variants", "exports", postgresql.JSONB(astext_type=sa.Text()), "'{}'"),
]


def upgrade() -> None:
    for table, name, kind, default in NEW:
        op.add_column(table, sa.Column(name, kind, nullable=False, server_default=sa.text(default)))
        op.alter_column(table, name, server_default=None)


def downgrade() -> None:
    for table, name, _, _ in reversed(NEW):
        op.drop_column(table, name)
