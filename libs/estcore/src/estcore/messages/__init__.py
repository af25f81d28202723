"""What travels on the bus: the only contract between services."""
