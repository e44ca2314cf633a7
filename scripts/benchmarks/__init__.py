"""Benchmarks of the fast path: one module per row in ``rows``, each against a baseline of its own in the same run."""
