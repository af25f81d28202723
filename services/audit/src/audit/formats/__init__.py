"""Forms in which SIEMs take records: pure functions from an entry of the log, one module each."""
