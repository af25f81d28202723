"""Commands of operators: verified here, carried out in one transaction, each on record."""
