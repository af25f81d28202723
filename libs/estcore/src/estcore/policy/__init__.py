"""Who may ask for what: pure decisions with reasons."""
