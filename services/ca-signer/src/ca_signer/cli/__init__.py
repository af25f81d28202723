"""Command line of ca-signer: every argument parser."""
