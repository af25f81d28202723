"""Events about certificates: consumed, projected into slots, reconciled with the ledger."""
