import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from covey.plans.signing import (
    generate_owner_key,
    load_private_key,
    load_public_key,
    private_key_pem,
    public_key_pem,
    sign_plan,
    verify_plan,
)
from covey.types.errors import PlanSignatureError, UsageError

HASH = "ab" * 32


def test_a_signature_holds_for_one_owner_one_population_and_one_plan():
    key, other = generate_owner_key(), generate_owner_key()
    signature = sign_plan(key, "p", HASH)
    verify_plan(key.public_key(), "p", HASH, signature)
    for wrong in (
        (other.public_key(), "p", HASH, signature),
        (key.public_key(), "q", HASH, signature),
        (key.public_key(), "p", "cd" * 32, signature),
        (key.public_key(), "p", HASH, bytes(64)),
        (key.public_key(), "p", HASH, signature[:-1]),
        (key.public_key(), "p", HASH, b""),
    ):
        with pytest.raises(PlanSignatureError):
            verify_plan(*wrong)


def test_population_and_hash_cannot_be_moved_into_each_other():
    """The population is length-prefixed: no other split of the same bytes verifies."""
    key = generate_owner_key()
    signature = sign_plan(key, "p" + "\x00" * 2, HASH)
    with pytest.raises(PlanSignatureError):
        verify_plan(key.public_key(), "p", "0000" + HASH[:-4], signature)


def test_keys_survive_their_files():
    key = generate_owner_key()
    again = load_private_key(private_key_pem(key), "owner.key")
    public = load_public_key(public_key_pem(key.public_key()), "owner.pub")
    verify_plan(public, "p", HASH, sign_plan(again, "p", HASH))


def test_files_that_hold_no_such_key_are_refused():
    key, ec = generate_owner_key(), generate_private_key(SECP256R1())
    ec_private = ec.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    ec_public = ec.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for wrong in (b"", b"hello", ec_private, public_key_pem(key.public_key())):
        with pytest.raises(UsageError) as caught:
            load_private_key(wrong, "owner.key")
        assert "PRIVATE" not in str(caught.value)
    for wrong in (b"", b"hello", ec_public, private_key_pem(key)):
        with pytest.raises(UsageError):
            load_public_key(wrong, "owner.pub")
