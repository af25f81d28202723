"""The commands operators may give, by subject."""
