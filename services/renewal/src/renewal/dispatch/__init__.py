"""Due slots: claimed in shares by priority, published as due."""
