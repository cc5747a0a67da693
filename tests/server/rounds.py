"""A coordinator whose other roles are played by the test, with the clock in its hand."""

import dataclasses

import numpy as np

from covey.server.coordinator import Coordinator
from covey.server.messages import (
    CloseShard,
    Counted,
    DevicesSelected,
    Lost,
    OpenShard,
    ShardClosed,
    WantDevices,
    selector_address,
)
from covey.server.settings import RoundSettings
from covey.types.segments import HEADER, SegmentSum

from . import parts

P = parts.POPULATION
BASE = RoundSettings(goal=4, over_selection=1.5, min_fraction=0.75, report_timeout_s=60.0, selection_timeout_s=30.0)


class Rounds:
    """A coordinator, its storage, and the hands that play the other roles."""

    def __init__(self, storage=None, num_shards=1, noise=None, **fields):
        if storage is None:
            storage, _ = parts.storage_with_population()
        if noise is None:
            parts.set_rounds(storage, dataclasses.replace(BASE, **fields))
        self.storage = storage
        self.num_tokens = 0
        self.role = Coordinator(P, storage, new_token=self.token, num_shards=num_shards, noise=noise)

    def token(self):
        self.num_tokens += 1
        return f"token{self.num_tokens}"

    @property
    def attempt(self):
        return self.role._round.name

    @property
    def rounds(self):
        return self.storage.rounds(P)

    def start(self, now_s=0.0):
        (envelope,) = self.role.start(now_s)
        assert envelope.to == selector_address(P)
        return envelope.message

    def send(self, message, now_s=0.0):
        return self.role.receive(message, now_s)

    def select(self, count=6, now_s=0.0):
        """Grant the wish; return the sessions of each shard."""
        out = self.send(DevicesSelected(self.attempt, tuple(f"t{i}" for i in range(count))), now_s)
        self.gathering = [e.message for e in out if isinstance(e.message, WantDevices)]
        out = [e for e in out if not isinstance(e.message, WantDevices)]
        opened = [e for e in out if isinstance(e.message, OpenShard)]
        assert out[: len(opened)] == opened  # room is made before any device hears of its session
        return [e.message.sessions for e in opened], [(e.to, e.message.message) for e in out[len(opened) :]]

    def count(self, times=1, now_s=0.0):
        attempt = self.attempt
        return [e for _ in range(times) for e in self.send(Counted(attempt, 100), now_s)]

    def lose(self, times=1, now_s=0.0):
        attempt = self.attempt
        return [e for _ in range(times) for e in self.send(Lost(attempt, "gone"), now_s)]

    def shard_sum(self, seeds):
        total = SegmentSum(parts.manifest().layout(0))
        for seed in seeds:
            total.fold_reals(parts.values(seed=seed))
        return total

    def evaluation_sum(self, count):
        """Return the sum of an evaluation: headers alone."""
        manifest = self.role._round.work.manifest
        total = SegmentSum(manifest.layout(0))
        header = np.zeros(total.segments[0].length)
        header[:6] = parts.values()[HEADER]
        for _ in range(count):
            total.fold_reals({HEADER: header})
        return total

    def round(self, count=4, now_s=0.0):
        """Play a whole round with ``count`` reports, from the selection on; return what the commit caused."""
        self.select(now_s=now_s)
        assert {type(e.message) for e in self.count(count, now_s)} == {CloseShard}
        return self.send(ShardClosed(self.attempt, self.shard_sum(range(count))), now_s)


def reason(rounds):
    """Return why the last round was abandoned, and check that it moved nothing."""
    row = rounds.rounds[-1]
    assert row.status == "abandoned" and row.checkpoint == "" and row.metrics == {}
    assert rounds.role.round == rounds.storage.load(P).round
    assert rounds.role.checkpoint.sha256 == rounds.storage.load(P).checkpoint
    return row.reason
