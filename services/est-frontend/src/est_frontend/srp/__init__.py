"""EST over TLS-SRP (RFC 5054): an optional process of its own, needs ``estsuite-frontend[srp]``."""
