"""RFC 7030 wire forms: bytes in, bytes out."""
