"""Random faults in a whole suite, and a check of what clients and records say afterwards.

``world`` starts a suite of two of everything on three nats-servers; ``clients`` enroll and renew, and
note what they were answered; ``faults`` are chosen and timed by a seed; ``checker`` compares clients,
ledger, slots, audit log and SIEM when everything is well again.
"""
