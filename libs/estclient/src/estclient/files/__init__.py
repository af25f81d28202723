"""Keys, certificates and requests as files that people name on a command line."""
