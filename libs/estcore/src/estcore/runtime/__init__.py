"""The only floor that does I/O: bus, database, settings, telemetry, health, lifecycle."""
