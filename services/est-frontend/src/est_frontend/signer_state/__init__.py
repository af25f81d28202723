"""State that ca-signer publishes, as this front end knows it."""
