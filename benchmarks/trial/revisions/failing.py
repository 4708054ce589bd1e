"""Fail half-way."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column, then divide by zero."""
    op.add_column("items", sa.Column("note", sa.Text(), nullable=True))
    op.execute("SELECT 1 / 0")


def downgrade() -> None:
    """Do nothing: no database is ever at this revision."""
