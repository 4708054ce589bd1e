"""Add a nullable column, which older code does not notice."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("items", sa.Column("note", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop the column with everything in it."""
    op.drop_column("items", "note")
