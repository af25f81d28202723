"""Issuers whose keys another CA holds: a process of its own, which can load no key."""
