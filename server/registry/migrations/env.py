"""Called by Alembic: run the migrations over the connection that `fedpath.server.registry.migrate` hands over."""

from alembic import context

from fedpath.server.registry.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=context.config.attributes["version_table"],
    # SQLite alters a table by copying it.
    render_as_batch=True,
)
context.run_migrations()
