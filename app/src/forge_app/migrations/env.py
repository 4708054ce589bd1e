"""Alembic's entry point; `forge_app.migrate` passes the connection, so there is no alembic.ini and no URL."""

from alembic import context

from forge_app.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
