"""Alembic environment of the audit schema."""

from estcore.runtime import alembic_env

alembic_env.run()
