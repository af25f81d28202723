"""ca-signer: decides with authority, records, signs, announces. Holds the CA key."""
