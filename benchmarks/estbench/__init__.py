"""Benchmarks of the whole suite and its peers: run, measure, report."""
