"""bases that training made: whose they are and what they were made of"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "5d1f0a7c2e94"
down_revision = "bc66d03fa3d3"


def upgrade() -> None:
    op.add_column("base_models", sa.Column("account_id", sa.Text(), nullable=True))
    op.add_column("base_models", sa.Column("lineage", postgresql.JSONB(), nullable=False, server_default="{}"))
    op.create_foreign_key(op.f("fk_base_models_account_id"), "base_models", "accounts", ["account_id"], ["id"])
    op.alter_column("base_models", "lineage", server_default=None)


def downgrade() -> None:
    op.drop_column("base_models", "lineage")
    op.drop_column("base_models", "account_id")
