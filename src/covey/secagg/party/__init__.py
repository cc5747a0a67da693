"""The party's side: one file for each step, and :class:`Party`, which takes the steps in order."""

from covey.secagg.party.party import Party

__all__ = ["Party"]
