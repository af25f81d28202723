"""Alembic's entry for the renewal schema."""

from estcore.runtime.alembic_env import run

run()
