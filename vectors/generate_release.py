"""Write ``release.json``: releases by fixed keys, good and bad ones, for whoever verifies them in another language."""

import json
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey.plans.release import Delegation, Release, delegate, sign_release
from covey.plans.signing import sign_plan

OWNER, RELEASER, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2, 3))
NOW, EXPIRES = 1_700_000_000, 1_707_776_000
PLAN = "ab" * 32
replace = msgspec.structs.replace


def release(delegation: Delegation, key: Ed25519PrivateKey = RELEASER, **fields: int) -> Release:
    """Return a release of one plan and one checkpoint."""
    given = {"version": 3, "num_bytes": 40, "created_at": NOW - 60, **fields}
    signature = sign_plan(OWNER, delegation.population, PLAN).hex()
    return sign_release(key, delegation, plan=PLAN, plan_signature=signature, checkpoint="cd" * 32, **given)


def cases() -> list[dict[str, object]]:
    """Return the releases, each with what a device that pins the owner and the population must say."""
    word = delegate(OWNER, "keyboard", RELEASER.public_key(), EXPIRES)
    good = release(word)
    own_word = delegate(OTHER, "keyboard", OTHER.public_key(), EXPIRES)
    listed: list[tuple[str, Release, bool, dict[str, int]]] = [
        ("a release", good, True, {}),
        ("the version seen before", good, True, {"newest_seen": 3}),
        ("a rollback", release(word, version=4, rollback_of=2), True, {"newest_seen": 3}),
        ("a name in UTF-8", release(delegate(OWNER, "clavier-é", RELEASER.public_key(), EXPIRES)), True, {}),
        ("under a renewed delegation", replace(good, delegation=delegate(
            OWNER, "keyboard", RELEASER.public_key(), 2 * EXPIRES)), True, {"now": EXPIRES}),
        ("a stale version", good, False, {"newest_seen": 4}),
        ("an expired delegation", good, False, {"now": EXPIRES}),
        ("another checkpoint", replace(good, checkpoint="ce" * 32), False, {}),
        ("another plan", replace(
            good, plan="ac" * 32, plan_signature=sign_plan(OWNER, "keyboard", "ac" * 32).hex()), False, {}),
        ("another size", replace(good, num_bytes=41), False, {}),
        ("another date", replace(good, created_at=NOW), False, {}),
        ("rollback_of was added", replace(good, rollback_of=1), False, {}),
        ("a version that was raised", replace(good, version=9), False, {}),
        ("an expiry that was put off", replace(good, delegation=replace(word, expires_at=2 * EXPIRES)), False, {}),
        ("a key that delegates to itself", release(own_word, OTHER), False, {}),
        ("another key's signature", replace(release(own_word, OTHER), delegation=word), False, {}),
        ("no signature over the plan", replace(good, plan_signature=""), False, {}),
        ("the release key signed the plan", replace(
            good, plan_signature=sign_plan(RELEASER, "keyboard", PLAN).hex()), False, {}),
        ("the plan of another population", replace(
            good, plan_signature=sign_plan(OWNER, "clavier", PLAN).hex()), False, {}),
        ("hex in capitals", replace(good, signature=good.signature.upper()), False, {}),
    ]  # fmt: skip
    return [
        {
            "case": name,
            "population": "clavier-é" if "UTF-8" in name else "keyboard",
            "now": extra.get("now", NOW),
            "newest_seen": extra.get("newest_seen", 0),
            "accepted": accepted,
            "release": msgspec.to_builtins(made),
        }
        for name, made, accepted, extra in listed
    ]


if __name__ == "__main__":
    document = {
        "about": "wire/SPEC.md, section 9; by generate_release.py. The secret keys are 32 bytes of 01 and 02.",
        "owner_key": OWNER.public_key().public_bytes_raw().hex(),
        "cases": cases(),
    }
    Path(__file__).with_name("release.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
