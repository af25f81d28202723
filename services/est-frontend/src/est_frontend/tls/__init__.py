"""TLS on pyOpenSSL: engine, connection facts, channel binding."""
