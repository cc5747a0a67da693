"""Secure Aggregation: the server learns the sum over a large enough set, or nothing."""
