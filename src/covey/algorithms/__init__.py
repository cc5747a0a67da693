"""Federated algorithms, one file per paper: the server half here, the device half in ``local``."""
