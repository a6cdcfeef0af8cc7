"""a file that is being validated is leased"""

import sqlalchemy as sa
from alembic import op

revision = "7a93c1e0b5d8"
down_revision = "d41f60c7a2be"


def upgrade() -> None:
    op.add_column("files", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("files", "lease_until")
