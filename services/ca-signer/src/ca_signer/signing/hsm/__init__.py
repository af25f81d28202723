"""Keys in a PKCS#11 token, used by a worker process of their own."""
