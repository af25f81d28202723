"""The whole suite on one machine: embedded servers, development CA, services, demo.

For people and tests. Production runs the same services against its own NATS and PostgreSQL.
"""
