"""Alembic environment of the ledger."""

from estcore.runtime import alembic_env

alembic_env.run()
