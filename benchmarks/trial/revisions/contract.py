"""Rename a column: what expects revision 0001 can read no item any more."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
breaks_older = True


def upgrade() -> None:
    """Rename the column."""
    op.alter_column("items", "description", new_column_name="details")


def downgrade() -> None:
    """Give the column its old name."""
    op.alter_column("items", "details", new_column_name="description")
