"""HTTP requests with mutated heads, sent to a running suite over TLS.

``mutations`` makes octets from good requests; ``answers`` reads what comes back, strictly;
``run`` starts a suite, sends for a time and checks that everything still works.
"""
