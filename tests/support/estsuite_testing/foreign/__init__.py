"""EST clients of other makers, each run as a program of one operation, and makers of CSRs."""
