"""est-frontend: speaks EST (RFC 7030) to any client. No database, no CA key."""

from est_frontend import openssl_configuration

# Before anything imports cryptography: its OpenSSL reads the configuration once.
openssl_configuration.load()
