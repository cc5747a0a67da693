"""Clipping, noise, accounting and the privacy ledger."""
