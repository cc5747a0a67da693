"""Covey's benchmarks: ``python -m benchmarks.NAME [--quick] [--json FILE]``, each the answer to one question."""
