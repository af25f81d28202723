"""What an installation needs before it starts: keys, passwords, a CA, settings, Secrets."""
