"""An algorithm of two phases that carries more than the model: a round commits after the last, or not at all."""

import numpy as np
import pytest
from device import world

from covey.algorithms.algorithm import Algorithm, ServerPhase, ServerState
from covey.algorithms.fedavg import fedavg
from covey.server.messages import ShardClosed, WantDevices
from covey.storage.interface import decode_named
from covey.storage.memory import MemoryStorage
from covey.types.tensors import unpack_tensors

from . import parts
from .rounds import P, Rounds, reason


def two_phases(settings):
    def apply(state, aggregate):
        extra = {"steps": state.extra["steps"] + np.float32(1)}
        return ServerState({k: v + np.float32(1) for k, v in state.params.items()}, extra)

    phase = ServerPhase(shared=lambda state: {}, apply=apply)
    return Algorithm("two", lambda params: ServerState(params, {"steps": np.zeros(1, np.float32)}), (phase, phase))


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr("covey.server.work.server_half", lambda name, settings: two_phases(settings))
    return parts.begin(MemoryStorage(), world.changed(world.plan(), phases=parts.manifest().phases * 2))


def play_phase(rounds, phase):
    _, answers = rounds.select()
    assert {m.phase for _, m in answers} == {phase}
    rounds.count(4)
    return rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(4))))


def test_a_round_of_two_phases_commits_after_the_second(two):
    rounds = Rounds(two)
    rounds.start()
    (envelope,) = play_phase(rounds, 0)
    assert isinstance(envelope.message, WantDevices) and rounds.role.round == 0 and rounds.rounds == ()
    play_phase(rounds, 1)
    (row,) = rounds.rounds
    assert (rounds.role.round, row.selected, row.reported, row.bytes_up) == (1, 6, 4, 800)
    stored = decode_named(rounds.storage.blob(rounds.storage.load(P).extra))
    assert stored["steps"].tolist() == [2.0]
    assert Rounds(rounds.storage).role._book.work("train")._committed.extra["steps"].tolist() == [2.0]


def test_while_a_phase_reports_the_devices_of_the_next_one_are_gathered_for_the_same_attempt(two):
    rounds = Rounds(two)
    rounds.start()
    rounds.select()
    assert [(w.attempt, w.held) for w in rounds.gathering] == [("token1", True)]
    assert rounds.count(1) == []  # once is enough
    rounds.count(3)
    (envelope,) = rounds.send(ShardClosed("token1", rounds.shard_sum(range(4))))
    assert (envelope.message.attempt, envelope.message.held) == ("token1", False)
    rounds.select()
    (following,) = rounds.gathering
    assert following.attempt != "token1" and following.held


def test_a_second_phase_that_fails_takes_the_first_back(two):
    rounds = Rounds(two)
    rounds.start()
    play_phase(rounds, 0)
    rounds.select()
    rounds.lose(6)
    assert reason(rounds) == "too_many_lost"
    rounds.role.tick(10.0)
    play_phase(rounds, 0)
    play_phase(rounds, 1)
    params = unpack_tensors(parts.manifest().params, rounds.storage.blob(rounds.role.checkpoint.sha256))
    assert params["b"].tolist() == [2.0, 2.0]  # two phases, not three


def test_a_state_of_another_layout_than_the_first_is_not_committed(monkeypatch):
    def grows(state, sums):
        return ServerState(state.params, {"more": np.zeros(1, np.float32)})

    half = Algorithm("grows", lambda params: ServerState(params), (ServerPhase(lambda state: {}, grows),))
    monkeypatch.setattr("covey.server.work.server_half", lambda name, settings: half)
    rounds = Rounds()
    rounds.start()
    rounds.round()
    assert reason(rounds) == "layout_invalid"  # a restart would take it for another algorithm's, and drop it
    rounds.role.tick(10.0)
    assert rounds.role.round == 0 and rounds.role.state.value == "selecting"


def test_a_training_after_another_algorithms_begins_with_a_state_of_its_own(two, monkeypatch):
    rounds = Rounds(two)
    rounds.start()
    play_phase(rounds, 0)
    play_phase(rounds, 1)
    assert rounds.storage.load(P).extra
    monkeypatch.setattr("covey.server.work.server_half", lambda name, settings: fedavg(settings))  # carries nothing
    assert Rounds(rounds.storage).role._book.work("train")._committed.extra == {}
