"""Rows that fill large tables fit the schema of today."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

import audit.tables
import ca_signer.ledger.tables
import renewal.tables
from estbench.rows import COPIES, Copied

SCHEMAS = {
    "ca_signer": ca_signer.ledger.tables.metadata,
    "renewal": renewal.tables.metadata,
    "audit": audit.tables.metadata,
}


def table(copied: Copied) -> sa.Table:
    schema, _, name = copied.table.partition(".")
    return SCHEMAS[schema].tables[name]


def keys(of: sa.Table) -> list[set[str]]:
    """The columns of each primary key, unique constraint and unique index."""
    constraints = [
        {c.name for c in found.columns}
        for found in of.constraints
        if isinstance(found, sa.PrimaryKeyConstraint | sa.UniqueConstraint)
    ]
    indexes = [{c.name for c in index.columns} for index in of.indexes if index.unique]
    return constraints + indexes


@pytest.mark.parametrize("copied", COPIES, ids=lambda c: c.table)
def test_every_copy_differs_in_each_key_of_its_table(copied: Copied) -> None:
    found = table(copied)
    changed = copied.columns.keys() | set(copied.left_out)
    assert changed <= set(found.columns.keys())
    for key in keys(found):
        assert key & changed, key
