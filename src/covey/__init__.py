"""Covey: cross-device federated learning, whole.

Devices keep their data and train a shared model; the server folds their updates into a sum and keeps none of them.
The packages below stand in the order in which a round flows: see ``ARCHITECTURE.md``.
"""

__version__ = "0.1.0"
