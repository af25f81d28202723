"""Figures of renewal: claims of large fleets, polls of agents, an outage, rotations under load."""
