"""The release desk: candidates, verdicts, versions, rollbacks, and all that keeps a release from its signature."""

import dataclasses

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from device import world

from covey.plans.manifest import NoiseTerms
from covey.plans.release import delegate, verify_release
from covey.plans.signing import private_key_pem, public_key_pem
from covey.privacy.accounting import GaussianLoss
from covey.privacy.ledger import encode_loss
from covey.server.promotion import ReleaseSettings
from covey.server.release_key import DELEGATION_FILE, KEY_FILE, ReleaseKey, Signer
from covey.server.releases import ReleaseDesk
from covey.storage.interface import PrivacyCharge
from covey.testing.storage import summary_of
from covey.types.errors import NotFoundError, ReleaseRefusedError, StorageFullError, UsageError
from covey.types.tensors import pack_tensors, sha256_hex, unpack_tensors

from . import parts

P = parts.POPULATION
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
EXPIRES = 10_000
SETTINGS = ReleaseSettings(every=2, min_cohort=3, min_devices=5, attempts=2)
NOISE = NoiseTerms(
    kind="gaussian", clip=1.0, clip_low=1.0, clip_high=1.0, noise_multiplier=1.0, clip_units=1000, denominator=2,
    population=100, delta=1e-3, num_rounds=1, coordinate_bound=1 << 20, budget=2.0,
)  # fmt: skip


def signer(now_s: float, population: str = P) -> Signer:
    if now_s >= EXPIRES:
        return Signer("delegation_expired")
    return Signer("on", KEY, delegate(world.OWNER, population, KEY.public_key(), EXPIRES))


def params(number: int, value: float | None = None) -> bytes:
    specs = world.plan().manifest.params
    tensors = unpack_tensors(specs, world.checkpoint())
    fill = float(number) if value is None else value
    return pack_tensors({k: np.full_like(v, fill) for k, v in tensors.items()}, specs)


class Desk:
    """A desk, its storage, and the rounds that the test commits."""

    def __init__(self, storage=None, *, sign=signer, metric="loss", noise=None, **settings):
        self.storage = storage or parts.storage_with_population()[0]
        manifest = world.plan().manifest
        if noise is not None:
            manifest = msgspec.structs.replace(manifest, privacy=msgspec.structs.replace(manifest.privacy, noise=noise))
        self.role = ReleaseDesk(
            P,
            lambda task: (world.plan().hash, manifest),
            self.storage,
            dataclasses.replace(SETTINGS, **settings),
            sign,
            metric=metric,
        )

    def commit(self, number, now_s=0.0, value=None, **fields):
        data = params(number, value)
        row = msgspec.structs.replace(summary_of(number), checkpoint=sha256_hex(data), **fields)
        self.storage.commit_round(P, row, data, b"")
        return self.role.committed(row, now_s)

    @property
    def candidates(self):
        return self.storage.release_store.candidates(P)

    @property
    def releases(self):
        return self.storage.release_store.releases(P)


def means(d, count=20):
    """Return the metrics of an evaluation where every device differs by ``d``, a little more or less."""
    values = d + 0.001 * np.resize([-1.0, 1.0], count)
    return {
        "compared": float(count),
        "difference": float(values.mean()),
        "difference_squared": float((values**2).mean()),
    }


def with_first_release(**fields) -> Desk:
    desk = Desk(**fields)
    desk.commit(1)
    assert desk.commit(2).status == "promoted"
    return desk


def test_the_first_release_is_promoted_on_its_round_alone_and_devices_accept_it():
    desk = Desk()
    with pytest.raises(NotFoundError):
        desk.role.current(0.0)
    assert desk.commit(1) is None  # only every second round stands
    made = desk.commit(2, now_s=7.5)
    assert (made.status, made.reason, made.version, made.cohort, made.decided_at) == ("promoted", "first", 1, 4, 7)
    release = desk.role.current(8.0)
    assert (release.version, release.checkpoint, release.plan) == (1, sha256_hex(params(2)), world.plan().hash)
    assert release.num_bytes == len(params(2)) and release.created_at == 7
    verify_release(world.OWNER.public_key(), release, population=P, now_s=8.0, newest_seen=0)
    assert desk.releases == (release,) and desk.candidates == (made,)


def test_a_better_candidate_is_promoted_after_its_evaluation():
    desk = with_first_release()
    desk.commit(3)
    pending = desk.commit(4)
    assert pending.status == "pending" and desk.role.version == 1
    wanted = desk.role.wanted(0.0)
    assert (wanted.round, wanted.checkpoint, wanted.reference) == (4, sha256_hex(params(4)), sha256_hex(params(2)))
    made = desk.role.evaluated(wanted, means(-0.1), 9.0)
    assert (made.status, made.reason, made.version, made.compared) == ("promoted", "not_worse", 2, 20)
    assert made.difference == pytest.approx(-0.1) and -0.1 < made.limit < -0.09
    assert desk.role.current(9.0).version == 2 and desk.role.wanted(9.0) is None
    assert desk.role.evaluated(wanted, means(-0.1), 9.0) is None  # decided once


def test_a_worse_candidate_stays_out_with_its_reason_and_the_release_serves_on():
    desk = with_first_release()
    desk.commit(4)
    made = desk.role.evaluated(desk.role.wanted(0.0), means(0.2), 1.0)
    assert (made.status, made.reason, made.version) == ("refused", "not_shown_not_worse", 0)
    assert desk.role.current(1.0).version == 1 and desk.candidates[-1] == made


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"value": float("nan")}, "not_finite"),
        ({"value": float("inf")}, "not_finite"),
        ({"metrics": {"loss": float("nan")}}, "not_finite"),
        ({"reported": 2}, "cohort_too_small"),
    ],
)
def test_a_round_that_is_not_fit_makes_no_release_not_even_a_first_one(fields, reason):
    desk = Desk()
    made = desk.commit(2, **fields)
    assert (made.status, made.reason) == ("refused", reason)
    assert desk.releases == () and desk.role.wanted(0.0) is None


def test_abandoned_rounds_and_those_between_do_not_stand():
    desk = Desk()
    assert desk.role.committed(summary_of(2, "abandoned"), 0.0) is None
    assert desk.commit(3) is None
    off = Desk(every=0)
    assert off.commit(2) is None and off.role.state(0.0) == "off"


def test_while_one_candidate_is_pending_no_other_stands():
    desk = with_first_release()
    desk.commit(4)
    wanted = desk.role.wanted(0.0)
    assert desk.commit(6) is None and desk.role.wanted(0.0) == wanted
    desk.role.evaluated(wanted, means(-0.1), 0.0)
    assert desk.commit(8).status == "pending"


def test_an_evaluation_that_fails_again_and_again_keeps_the_candidate_out():
    desk = with_first_release()
    desk.commit(4)
    wanted = desk.role.wanted(0.0)
    assert not desk.role.evaluation_failed(wanted)
    assert desk.role.evaluation_failed(wanted)
    assert desk.role.wanted(0.0) == wanted
    made = desk.role.give_up(wanted, 1.0)
    assert (made.status, made.reason) == ("refused", "evaluation_failed")
    assert desk.role.give_up(wanted, 1.0) is None and not desk.role.evaluation_failed(wanted)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"metric": None}, "no_evaluation_plan"), ({"noise": NOISE}, "no_evaluation_under_privacy")],
)
def test_without_an_evaluation_only_the_first_is_released(fields, reason):
    desk = with_first_release(**fields)
    assert desk.commit(4).reason == reason
    told = with_first_release(**fields, evaluate=False)
    assert told.commit(4).reason == "evaluation_off" and told.role.version == 2


def test_what_the_ledger_does_not_allow_is_not_released():
    desk = Desk(noise=NOISE, evaluate=False)
    desk.storage.charge_privacy(
        P, [PrivacyCharge("plan", 1, 0, "a", encode_loss(GaussianLoss(0.1)))], lambda spent: None
    )
    assert desk.commit(2).reason == "privacy_budget"
    unlimited = Desk(desk.storage, noise=msgspec.structs.replace(NOISE, budget=None), evaluate=False)
    assert unlimited.commit(4).reason == "first"


def test_without_a_delegation_nothing_is_released_and_training_goes_on():
    desk = Desk()
    assert desk.role.state(EXPIRES) == "delegation_expired"
    assert desk.commit(2, now_s=EXPIRES) is None and desk.candidates == ()
    assert desk.commit(4, now_s=0.0).reason == "first"
    desk.commit(6)
    wanted = desk.role.wanted(0.0)
    assert desk.role.wanted(EXPIRES) is None
    assert desk.role.evaluated(wanted, means(-0.1), EXPIRES) is None  # it stays pending until it can be signed
    assert desk.role.wanted(0.0) == wanted
    assert desk.role.evaluated(wanted, means(-0.1), 0.0).version == 2


def test_a_release_is_served_under_the_newest_delegation_of_its_key():
    later = delegate(world.OWNER, P, KEY.public_key(), 5 * EXPIRES)
    desk = with_first_release(sign=lambda now_s: signer(now_s) if now_s < 100 else Signer("on", KEY, later))
    old, new = desk.role.current(0.0), desk.role.current(200.0)
    assert (old.delegation.expires_at, new.delegation.expires_at) == (EXPIRES, 5 * EXPIRES)
    verify_release(world.OWNER.public_key(), new, population=P, now_s=2 * EXPIRES, newest_seen=1)
    other = Ed25519PrivateKey.generate()
    replaced = Desk(
        desk.storage, sign=lambda now_s: Signer("on", other, delegate(world.OWNER, P, other.public_key(), EXPIRES))
    )
    assert replaced.role.current(0.0) == old


def test_a_release_that_was_stored_without_its_plans_signature_is_handed_out_with_it():
    desk = with_first_release()
    made = desk.role.current(0.0)
    store = desk.storage.release_store
    rows = store._releases[P]
    rows[0] = msgspec.structs.replace(made, plan_signature="")  # as older servers stored it
    again = Desk(desk.storage)
    assert store.releases(P)[0].plan_signature == ""
    assert again.role.current(0.0) == made and again.role.history(0.0).releases == (made,)
    desk.commit(4)
    back = Desk(desk.storage, evaluate=False)
    back.role.resumed(0.0)
    assert back.role.roll_back(1, 1.0).plan_signature == made.plan_signature


def test_a_desk_resumes_where_the_storage_stands():
    desk = with_first_release()
    desk.commit(4)
    again = Desk(desk.storage)
    assert again.role.version == 1 and again.role.resumed(0.0) is None
    wanted = again.role.wanted(0.0)
    assert wanted == desk.role.wanted(0.0)
    assert again.role.evaluated(wanted, means(-0.1), 0.0).version == 2


def test_a_candidate_that_was_left_undecided_by_a_crash_is_decided():
    desk = Desk()
    settle, desk.storage.release_store.settle = desk.storage.release_store.settle, _full
    with pytest.raises(StorageFullError):
        desk.commit(2)
    desk.storage.release_store.settle = settle
    again = Desk(desk.storage)
    assert again.role.resumed(3.0).reason == "first" and again.role.version == 1


def test_a_desk_that_could_not_store_a_verdict_has_not_decided():
    desk = with_first_release()
    desk.commit(4)
    wanted = desk.role.wanted(0.0)
    settle, desk.storage.release_store.settle = desk.storage.release_store.settle, _full
    with pytest.raises(StorageFullError):
        desk.role.evaluated(wanted, means(-0.1), 0.0)
    desk.storage.release_store.settle = settle
    assert desk.role.version == 1
    assert desk.role.evaluated(wanted, means(-0.1), 0.0).version == 2


def _full(*args):
    raise StorageFullError("server.db", expected="room", got="none")


def test_rolling_back_is_a_new_version():
    desk = with_first_release()
    desk.commit(4)
    desk.role.evaluated(desk.role.wanted(0.0), means(-0.1), 0.0)
    with pytest.raises(ReleaseRefusedError, match="earlier checkpoint"):
        desk.role.roll_back(2, 1.0)
    with pytest.raises(NotFoundError):
        desk.role.roll_back(7, 1.0)
    back = desk.role.roll_back(1, 5.0)
    assert (back.version, back.rollback_of, back.checkpoint) == (3, 1, sha256_hex(params(2)))
    verify_release(world.OWNER.public_key(), back, population=P, now_s=6.0, newest_seen=2)
    assert desk.role.current(6.0) == back and Desk(desk.storage).role.version == 3
    with pytest.raises(ReleaseRefusedError, match="delegation_expired"):
        desk.role.roll_back(2, EXPIRES)


def test_a_rollback_needs_the_checkpoint():
    desk = with_first_release(evaluate=False)
    for number in range(3, 13):
        desk.commit(number)
    assert desk.role.version == 6
    with pytest.raises(NotFoundError):
        desk.role.roll_back(1, 0.0)
    assert desk.role.version == 6


# The files


def write_key(path, *, population=P, key=KEY, owner=world.OWNER, expires=EXPIRES, pinned=world.OWNER):
    (path / KEY_FILE).write_bytes(private_key_pem(KEY))
    word = delegate(owner, population, key.public_key(), expires)
    (path / DELEGATION_FILE).write_bytes(msgspec.json.encode(word))
    if pinned is not None:
        (path / "owner.pub").write_bytes(public_key_pem(pinned.public_key()))


@pytest.mark.parametrize(
    ("fields", "now_s", "state"),
    [
        ({}, 0.0, "on"),
        ({"pinned": None}, 0.0, "on"),
        ({}, EXPIRES, "delegation_expired"),
        ({"population": "q"}, 0.0, "delegation_refused"),
        ({"key": Ed25519PrivateKey.generate()}, 0.0, "delegation_refused"),
        ({"owner": Ed25519PrivateKey.generate()}, 0.0, "delegation_refused"),
        ({"owner": Ed25519PrivateKey.generate(), "pinned": None}, 0.0, "on"),  # devices would refuse; nobody can tell
    ],
)
def test_a_signer_says_why_it_cannot_sign(tmp_path, fields, now_s, state):
    write_key(tmp_path, **fields)
    got = ReleaseKey(tmp_path, P).signer(now_s)
    assert got.state == state and (got.key is not None) == (state == "on") == (got.delegation is not None)


def test_missing_and_broken_files(tmp_path):
    files = ReleaseKey(tmp_path, P)
    assert files.signer(0.0).state == "no_release_key"
    write_key(tmp_path)
    (tmp_path / DELEGATION_FILE).unlink()
    assert files.signer(0.0).state == "no_delegation"
    (tmp_path / DELEGATION_FILE).write_bytes(b"{}")
    assert files.signer(0.0).state == "delegation_refused"
    write_key(tmp_path)
    assert files.signer(0.0).state == "on"  # a renewal needs no restart
    (tmp_path / KEY_FILE).write_bytes(b"no key")
    with pytest.raises(UsageError) as caught:
        files.signer(0.0)
    assert "no key" not in str(caught.value)
