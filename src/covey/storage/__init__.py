"""Durable state behind interfaces: memory and SQLite, and content-addressed blobs."""
