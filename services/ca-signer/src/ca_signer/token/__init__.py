"""Keys in a PKCS#11 token: one worker process a token, a strict pipe, a breaker before it."""
