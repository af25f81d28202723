"""est-frontend: speaks EST (RFC 7030) to any client. No database, no CA key."""
