"""From an enrollment request to a decided certificate: everything before a key is needed."""
