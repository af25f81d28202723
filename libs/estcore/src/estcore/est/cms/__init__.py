"""CMS of generated keys (RFC 5652, RFC 5958): EnvelopedData and SignedData, written and opened."""
