"""Ways to a SIEM: each takes entries, and returns when the receiver has acknowledged them."""
