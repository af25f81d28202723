"""EST over TLS-SRP (RFC 5054): the front end with another listener, in a process of its own."""
