"""Rounds whose devices download an encoded checkpoint: one lineage, and the same bits on both sides."""

import asyncio
import functools

import numpy as np
import pytest
from device import world

from covey.algorithms.algorithm import Algorithm, ServerPhase, ServerState
from covey.compression.checkpoint import decode_download
from covey.device.effects import Finished, SendReport, Train
from covey.device.session import Session
from covey.device.trainer import OnnxTrainer
from covey.plans.evaluation import evaluation_plan
from covey.plans.manifest import DOWNLOAD_SCHEMA
from covey.plans.plan import unpack_plan
from covey.plans.signing import sign_plan
from covey.server.download import Offered
from covey.server.messages import ShardClosed
from covey.server.population import begin_population
from covey.server.settings import TaskSettings
from covey.storage.memory import MemoryStorage
from covey.types.errors import CompressionSpecError, NotFoundError, PlanFormatError
from covey.types.tensors import pack_tensors, sha256_hex, unpack_tensors
from covey.wire.messages import Reported, decode_message

from . import app, parts
from .rounds import P, Rounds, reason

SPEC = "quantize:4"


@functools.cache
def plan_bytes(spec=SPEC, **fields):
    return world.changed(world.plan(), schema=DOWNLOAD_SCHEMA, download=spec, **fields)


SPECS = world.plan().manifest.params


def population(plan=None):
    return parts.begin(MemoryStorage(), plan_bytes() if plan is None else plan)


def model(storage):
    return unpack_tensors(SPECS, storage.blob(storage.load(P).checkpoint))


def flat(tensors):
    return np.concatenate([tensors[s.name].ravel() for s in SPECS])


def offered(answers):
    """Return the one checkpoint that all devices of a round were offered."""
    (ref,) = {m.checkpoint for _, m in answers}
    return ref


def play(rounds):
    """Play a round; return what its devices downloaded, and the mean of their deltas."""
    _, answers = rounds.select()
    ref = offered(answers)
    data = rounds.storage.blob(ref.sha256)
    assert len(data) == ref.num_bytes
    rounds.count(4)
    total = rounds.shard_sum(range(4))
    mean = total.reals("model") / 16  # four devices of weight 4
    rounds.send(ShardClosed(rounds.attempt, total))
    return data, mean


def test_the_exact_model_moves_by_what_the_decoded_one_was_moved():
    rounds = Rounds(population())
    rounds.start()
    exact = flat(model(rounds.storage))
    for _ in range(3):
        data, mean = play(rounds)
        decoded = flat(decode_download(data, SPECS, SPEC))
        assert 0 < np.abs(decoded - exact).max() < 0.1
        applied = (decoded.astype(np.float64) + mean).astype(np.float32)
        exact = applied + (exact - decoded)
        assert np.array_equal(flat(model(rounds.storage)), exact)  # bit for bit
        rounds.role.tick(10.0)


def test_what_is_served_as_the_newest_checkpoint_is_exact_and_the_encoded_one_goes_with_its_round():
    rounds = Rounds(population())
    rounds.start()
    data, _ = play(rounds)
    name = sha256_hex(data)
    assert rounds.role.checkpoint.num_bytes == len(world.checkpoint())
    assert rounds.rounds[-1].checkpoint == rounds.role.checkpoint.sha256 != name
    with pytest.raises(NotFoundError):
        rounds.storage.blob(name)


def test_a_round_that_is_tried_again_and_a_server_that_was_restarted_offer_the_same_bytes():
    rounds = Rounds(population())
    rounds.start()
    _, answers = rounds.select()
    first = offered(answers)
    rounds.lose(6)
    assert reason(rounds) == "too_many_lost"
    rounds.role.tick(10.0)
    assert offered(rounds.select()[1]) == first
    again = Rounds(rounds.storage)
    again.start()
    assert offered(again.select()[1]) == first


def test_a_model_that_diverged_ends_the_round_and_says_so():
    bad = pack_tensors({s.name: np.full(s.shape, np.inf, np.float32) for s in SPECS}, SPECS)
    storage = population()
    row = storage.load(P)
    storage._populations[P] = type(row)(P, row.round, storage.put_blob(bad), row.extra)
    rounds = Rounds(storage)
    rounds.start()
    rounds.select()
    assert reason(rounds) == "update_not_finite"


def test_a_plan_whose_spec_is_no_download_gets_no_task():
    with pytest.raises(CompressionSpecError, match="quantize:B"):
        Rounds(population(plan_bytes("hd|quantize:8")))


def test_every_phase_begins_from_the_same_decoded_model(monkeypatch):
    seen = []

    def apply(state, aggregate):
        seen.append(flat(state.params))
        return ServerState({k: v + np.float32(1) for k, v in state.params.items()}, state.extra)

    phase = ServerPhase(shared=lambda state: {}, apply=apply)
    two = Algorithm("two", lambda params: ServerState(params, {}), (phase, phase))
    monkeypatch.setattr("covey.server.work.server_half", lambda name, settings: two)
    rounds = Rounds(population(plan_bytes(phases=world.plan().manifest.phases * 2)))
    before = flat(model(rounds.storage))
    rounds.start()
    first, _ = play(rounds)
    second, _ = play(rounds)
    assert first == second
    decoded = flat(decode_download(first, SPECS, SPEC))
    assert np.array_equal(seen[0], decoded) and np.array_equal(seen[1], decoded + 1)
    np.testing.assert_allclose(flat(model(rounds.storage)), before + 2, rtol=1e-6)


def test_an_evaluation_measures_the_exact_checkpoint():
    plan = unpack_plan(evaluation_plan(unpack_plan(plan_bytes())))
    assert plan.manifest.download == ""
    with pytest.raises(PlanFormatError, match="an evaluation measures the exact checkpoint"):
        unpack_plan(world.changed(plan, download=SPEC))


def test_steps_below_an_interval_are_not_lost():
    """Were the decoded model gone on from, each round would snap it back to its level."""
    rounds = Rounds(population(plan_bytes("quantize:1")))
    rounds.start()
    start = flat(model(rounds.storage))
    moved = np.zeros_like(start, np.float64)
    for number in range(1, 6):
        moved += play(rounds)[1]
        rounds.role.tick(10.0 * number)
    # Five rounds, each with three roundings to float32 of values below 8: 2^-22 each.
    np.testing.assert_allclose(flat(model(rounds.storage)), start + moved, atol=15 * 2.0**-22)


async def device(served, index, decoded):
    """Let a real session take part over HTTP; note what it trained from."""
    headers = served.credential()
    assignment = await served.check_in()
    session = Session(world.policy(), seed=bytes([index]) * 32)
    session.start()
    effect = session.answered(assignment)
    while not isinstance(effect, Finished):
        if isinstance(effect, Train):
            decoded.append(flat(effect.job.params))
            effect = session.trained(OnnxTrainer().run(effect.job, world.points(9 + index, seed=index)))
        elif isinstance(effect, SendReport):
            got = await served.report(effect.session, effect.body)
            effect = session.reported(decode_message(got.content, Reported))
        else:
            got = await served.client.get(effect.ref.path, headers=headers)
            assert got.status_code == 200 and len(got.content) == effect.ref.num_bytes
            effect = session.fetched(got.content)


def test_devices_and_server_stand_on_the_same_bits_over_http_and_the_encoded_bytes_are_counted(monkeypatch):
    storage, data, offers, of = MemoryStorage(), plan_bytes(), [], Offered.of
    monkeypatch.setattr(Offered, "of", lambda *args: offers.append(of(*args)) or offers[-1])
    signature = sign_plan(world.OWNER, P, sha256_hex(data)).hex()
    begin_population(storage, P, data, signature, world.checkpoint(), TaskSettings(parts.QUICK), parts.TASK)

    async def scenario(served):
        for number in (1, 2):
            decoded = []
            await asyncio.gather(*(device(served, i, decoded) for i in range(2)))
            await served.until(lambda n=number: served.service.coordinator.round == n)
            stood_on = offers[number - 1]
            assert all(np.array_equal(d, flat(stood_on.params)) for d in decoded) and len(decoded) == 2
            row = (await served.status()).rounds[-1]
            assert row.bytes_down == 2 * (len(data) + len(stood_on.data))

    app.run(scenario, storage=storage)
