import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from covey.plans.release import (
    Release,
    decode_delegation,
    decode_release,
    delegate,
    encode_release,
    sign_release,
    verify_delegation,
    verify_release,
)
from covey.plans.signing import sign_plan
from covey.types.errors import PlanSignatureError, ReleaseRefusedError

OWNER, RELEASER, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2, 3))
NOW, EXPIRES = 1_000, 2_000
PLAN, CHECKPOINT = "ab" * 32, "cd" * 32
replace = msgspec.structs.replace


def make(version: int = 3, rollback_of: int = 0, population: str = "p", key=RELEASER, owner=OWNER) -> Release:
    return sign_release(
        key,
        delegate(owner, population, key.public_key(), EXPIRES),
        version=version,
        plan=PLAN,
        plan_signature=sign_plan(owner, population, PLAN).hex(),
        checkpoint=CHECKPOINT,
        num_bytes=40,
        created_at=NOW,
        rollback_of=rollback_of,
    )


def check(release: Release, *, population: str = "p", now_s: float = NOW, newest_seen: int = 0) -> None:
    verify_release(OWNER.public_key(), release, population=population, now_s=now_s, newest_seen=newest_seen)


def test_a_release_by_the_delegated_key_is_accepted_and_survives_its_json():
    release = make()
    check(release)
    check(release, newest_seen=3)
    assert decode_release(encode_release(release)) == release
    delegation = release.delegation
    assert decode_delegation(msgspec.json.encode(delegation)) == delegation


WRONG = {
    "population": "q",
    "version": 4,
    "plan": "ac" * 32,
    "checkpoint": "ce" * 32,
    "num_bytes": 41,
    "created_at": NOW + 1,
    "rollback_of": 1,
    "delegation": delegate(OWNER, "p", OTHER.public_key(), EXPIRES),
    "signature": "00" * 64,
    "plan_signature": "00" * 64,
}


def test_every_field_is_in_the_table():
    assert set(WRONG) == set(Release.__struct_fields__)


@pytest.mark.parametrize("field", WRONG)
def test_a_release_with_any_other_field_is_refused(field):
    with pytest.raises(PlanSignatureError if field == "plan_signature" else ReleaseRefusedError):
        check(replace(make(), **{field: WRONG[field]}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("population", "q"),
        ("release_key", OTHER.public_key().public_bytes_raw().hex()),
        ("expires_at", EXPIRES + 1),
        ("signature", "11" * 64),
    ],
)
def test_a_delegation_with_any_other_field_is_refused(field, value):
    release = make()
    with pytest.raises(ReleaseRefusedError):
        check(replace(release, delegation=replace(release.delegation, **{field: value})))


def test_a_key_that_the_owner_did_not_delegate_cannot_publish():
    by_itself = make(key=OTHER, owner=OTHER)  # signs its own delegation
    with pytest.raises(ReleaseRefusedError, match="pinned owner key"):
        check(by_itself)
    stolen = replace(by_itself, delegation=make().delegation)
    with pytest.raises(ReleaseRefusedError, match="delegated key"):
        check(stolen)


@pytest.mark.parametrize(
    ("signer", "population", "plan"),
    [(RELEASER, "p", PLAN), (OWNER, "q", PLAN), (OWNER, "p", CHECKPOINT)],
    ids=["the release key", "another population", "another plan"],
)
def test_the_release_key_cannot_say_what_devices_execute(signer, population, plan):
    """The release is signed by the delegated key, rightly; its plan is not the owner's."""
    release = replace(make(), plan_signature=sign_plan(signer, population, plan).hex())
    with pytest.raises(PlanSignatureError, match="pinned owner key"):
        check(release)


def test_a_release_of_an_older_server_has_no_plan_signature_and_is_refused():
    fields = msgspec.json.decode(encode_release(make()))
    del fields["plan_signature"]
    with pytest.raises(ReleaseRefusedError, match="plan_signature"):
        check(decode_release(msgspec.json.encode(fields)))


def test_a_delegation_holds_until_it_expires():
    check(make(), now_s=EXPIRES - 0.5)
    for now_s in (EXPIRES, EXPIRES + 1e9, float("nan")):
        with pytest.raises(ReleaseRefusedError, match="expired"):
            check(make(), now_s=now_s)


def test_a_renewed_delegation_for_the_same_key_takes_the_place_of_the_old_one():
    renewed = delegate(OWNER, "p", RELEASER.public_key(), 2 * EXPIRES)
    check(replace(make(), delegation=renewed), now_s=EXPIRES + 1)


def test_another_population_is_refused_on_both_levels():
    elsewhere = make(population="q")
    with pytest.raises(ReleaseRefusedError, match="population"):
        check(elsewhere)
    check(elsewhere, population="q")
    with pytest.raises(ReleaseRefusedError, match="delegation: population"):
        verify_delegation(OWNER.public_key(), elsewhere.delegation, population="p", now_s=NOW)


def test_versions_only_move_forward_and_a_rollback_is_a_new_version():
    with pytest.raises(ReleaseRefusedError, match="version"):
        check(make(version=3), newest_seen=4)
    check(make(version=4, rollback_of=2), newest_seen=3)
    for version, rollback_of in ((0, 0), (-1, 0), (2, 2), (2, 3), (2, -1), (1 << 63, 0)):
        with pytest.raises(ReleaseRefusedError):
            make(version=version, rollback_of=rollback_of)


def test_only_the_key_of_the_delegation_signs():
    with pytest.raises(ReleaseRefusedError, match="release key"):
        sign_release(
            OTHER, make().delegation, version=1, plan=PLAN, plan_signature="", checkpoint=CHECKPOINT, num_bytes=1,
            created_at=1,
        )  # fmt: skip


@pytest.mark.parametrize(
    "field", [{"plan": "AB" * 32}, {"plan": "ab"}, {"checkpoint": "zz" * 32}, {"signature": ""}, {"signature": "ab"},
              {"plan_signature": ""}, {"plan_signature": "AB" * 64},
              {"population": "\ud800"}, {"population": ""}, {"num_bytes": -1}, {"created_at": 1 << 64}],
)  # fmt: skip
def test_text_that_is_not_canonical_is_refused(field):
    with pytest.raises(ReleaseRefusedError):
        check(replace(make(), **field), population=field.get("population", "p"))


def test_a_release_key_of_low_order_or_of_no_point_is_refused():
    for raw in (bytes(32), b"\xff" * 32, (1).to_bytes(32, "little")):
        delegation = replace(make().delegation, release_key=raw.hex())
        with pytest.raises(ReleaseRefusedError):  # the owner never signed it
            check(replace(make(), delegation=delegation))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_release_are_refused(data):
    for decode in (decode_release, decode_delegation):
        with pytest.raises(ReleaseRefusedError):
            decode(data)


def test_a_huge_answer_is_refused_before_it_is_parsed():
    with pytest.raises(ReleaseRefusedError, match="at most"):
        decode_release(b" " * 20_000 + encode_release(make()))


def test_the_signed_statements_are_those_of_the_specification():
    """Written out from SPEC.md, section 9, without the module's own code."""
    release = make(version=3, rollback_of=2)
    key = RELEASER.public_key().public_bytes_raw()
    u64 = [n.to_bytes(8, "big") for n in (3, 40, NOW, 2, EXPIRES)]
    name = b"\x00\x00\x00\x01p"
    OWNER.public_key().verify(
        bytes.fromhex(release.delegation.signature), b"covey delegation v1\x00" + name + key + u64[4]
    )
    body = name + u64[0] + b"\xab" * 32 + b"\xcd" * 32 + u64[1] + u64[2] + u64[3] + key
    RELEASER.public_key().verify(bytes.fromhex(release.signature), b"covey release v1\x00" + body)
    OWNER.public_key().verify(bytes.fromhex(release.plan_signature), b"covey plan v1\x00" + name + b"\xab" * 32)


VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "release.json").read_text())


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["case"])
def test_the_vectors_for_other_languages(case):
    owner = Ed25519PublicKey.from_public_bytes(bytes.fromhex(VECTORS["owner_key"]))
    release = decode_release(json.dumps(case["release"]).encode())

    def verify():
        verify_release(
            owner, release, population=case["population"], now_s=case["now"], newest_seen=case["newest_seen"]
        )

    if case["accepted"]:
        verify()
    else:
        with pytest.raises((ReleaseRefusedError, PlanSignatureError)):
            verify()


def test_the_vectors_are_those_that_are_generated():
    import runpy

    generate = runpy.run_path(str(Path(__file__).parents[2] / "vectors" / "generate_release.py"), run_name="generator")
    assert generate["cases"]() == VECTORS["cases"]
