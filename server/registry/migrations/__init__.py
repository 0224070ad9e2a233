"""How the registry's database came to be as it is: one file a version, run by Alembic."""
