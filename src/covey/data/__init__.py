"""Federated data sets: loaders, partitioners, and the embedded Shakespeare-by-role set."""
