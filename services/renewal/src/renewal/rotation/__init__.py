"""Rotation of one certificate to the next: schedule, state, proof of use."""
