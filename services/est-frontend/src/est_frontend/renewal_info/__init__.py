"""Renewal information: followed from its stream, kept on disk, answered without any service."""
