"""Alembic: the environment and the versions of the schema."""
