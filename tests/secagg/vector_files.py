"""Writes ``vectors/secagg/``: small runs with every intermediate value, and negative vectors with one failure each.

``python -m secagg.vector_files`` from the folder ``tests`` writes the files anew; a test compares them with what the
code does. All randomness comes from :class:`Seeded`, and every byte that was drawn stands in the file.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from covey.secagg import Mode, Step
from covey.secagg.encoding import HEADER_BYTES, bitmap
from covey.secagg.keys import pair_key, public_key, seal_key, segment_seed, self_key
from covey.secagg.messages import Delivery, Roster, Signatures, Survivors
from covey.types.segments import Segment
from secagg.sessions import AUTHORITY, NOW_S, Run, Seeded, identity, session

FOLDER = Path(__file__).parents[2] / "vectors" / "secagg"
P = (2**255 - 19).to_bytes(32, "little")


def layout(n: int) -> tuple[Segment, ...]:
    return (
        Segment("model", 13, 100, n, ring_bits=13),
        Segment("header", 3, 1 << 40, n, ring_bits=64),
        Segment("wide", 5, 7, n, ring_bits=27, signed=False),
    )


RUNS: dict[str, dict[str, Any]] = {
    "honest-but-curious-4": {"mode": Mode.HONEST_BUT_CURIOUS, "n_max": 4, "threshold": 2, "min_survivors": 3},
    "honest-but-curious-sparse-7": {
        "mode": Mode.HONEST_BUT_CURIOUS,
        "n_max": 7,
        "num_neighbours": 4,
        "threshold": 3,
        "min_survivors": 4,
    },
    "active-5": {"mode": Mode.ACTIVE, "n_max": 5, "threshold": 4, "min_survivors": 3},
}
GONE = {
    "honest-but-curious-4": {3: Step.MASK},
    "honest-but-curious-sparse-7": {1: Step.SHARE, 5: Step.MASK},
    "active-5": {2: Step.MASK},
}


class Recorded:
    """Randomness that remembers what was drawn."""

    def __init__(self, seed: object) -> None:
        self._source, self.drawn = Seeded(seed), []

    def __call__(self, num_bytes: int) -> bytes:
        self.drawn.append(self._source(num_bytes))
        return self.drawn[-1]


def start(name: str) -> Run:
    """Begin a run whose session pins something different in every field."""
    values = dict(RUNS[name])
    n = values["n_max"]
    hashes = {f"{k}_hash": bytes([i]) * 32 for i, k in enumerate(("plan", "checkpoint", "broadcast"), 1)}
    s = session(
        values.pop("mode"), segments=layout(n), round_id=name, group=1, public_seed=b"\x04" * 32, **hashes, **values
    )
    run = Run(s, seed=name, gone=GONE[name])
    for who in run.parties.values():
        who._source = Recorded((name, who.index))
    return run


def reach(name: str, step: Step) -> Run:
    return start(name).until(step)


def described(run: Run) -> dict[str, Any]:
    s = run.session
    segments = [
        {"name": x.name, "length": x.length, "bound": x.bound, "n_max": x.n_max, "ring_bits": x.ring_bits,
         "signed": x.signed, "fraction_bits": x.fraction_bits}
        for x in s.segments
    ]  # fmt: skip
    numbers = ("n_max", "num_neighbours", "threshold", "min_survivors", "num_adversaries", "group")
    raw = ("public_seed", "plan_hash", "checkpoint_hash", "broadcast_hash", "authority", "id")
    return {
        "mode": s.mode.value, "population": s.population, "round_id": s.round_id,
        **{k: getattr(s, k) for k in numbers}, **{k: getattr(s, k).hex() for k in raw}, "segments": segments,
        "now_s": NOW_S,
    }  # fmt: skip


def positive(name: str) -> dict[str, Any]:
    """Run a session and write down everything."""
    run = reach(name, Step.MASK)
    assert run.server._sharing is not None
    group = run.server._sharing.group
    neighbours = [[group.indices[q] for q in group.graph.neighbours(p)] for p in range(group.size)]
    run.until(Step.OPEN)
    unmasking = run.server._unmasking
    assert unmasking is not None
    opened_secrets = {group.indices[p]: s.hex() for p, s in sorted(unmasking._secrets().items())}
    opened = run.server.open()
    u2 = [i for i in group.indices if GONE[name].get(i, Step.OPEN) > Step.SHARE]
    parties = {}
    for i, who in run.parties.items():
        drawn = who._source.drawn
        cipher, mask, *rest = drawn
        party: dict[str, Any] = {
            "random_bytes_drawn": [d.hex() for d in drawn],
            "inputs": [[int(v) for v in vector] for vector in run.inputs[i]],
            "cipher_public": public_key(cipher).hex(),
            "mask_public": public_key(mask).hex(),
        }
        if run.session.is_active:
            party["identity_private"] = Seeded(("identity", (name, i)))(32).hex()
        if rest and i in u2:
            own = self_key(group.scope, rest[0], i, public_key(mask))
            party["self_mask_seeds"] = [segment_seed(own, n).hex() for n in range(len(run.session.segments))]
        party["messages"] = {
            step.name.lower(): {
                "received": run.received[step, i].hex(),
                **({"sent": run.sent[step, i].hex()} if (step, i) in run.sent else {}),
            }
            for step in Step
            if (step, i) in run.received
        }
        parties[str(i)] = party
    return {
        "expect": "success", "session": described(run), "root": group.scope.root.hex(),
        "neighbours": dict(zip(map(str, group.indices), neighbours, strict=True)),
        "parties": parties, "pairs": _pairs(run, group, neighbours, u2), "opened_secrets": opened_secrets,
        "survivors": list(opened.survivors), "sums": [[int(v) for v in x] for x in opened.sums],
    }  # fmt: skip


def _pairs(run: Run, group, neighbours, u2) -> list[dict[str, Any]]:
    """For every edge of U2: both shared secrets, both directed seal keys, and the mask seeds."""
    out = []
    for a in u2:
        for b in neighbours[group.indices.index(a)]:
            if b not in u2 or b < a:
                continue
            (cipher_a, mask_a, *_), (cipher_b, mask_b, *_) = (run.parties[i]._source.drawn for i in (a, b))
            sealed = _exchange(cipher_a, cipher_b)
            masked = _exchange(mask_a, mask_b)
            keys = [public_key(k) for k in (cipher_a, cipher_b, mask_a, mask_b)]
            key = pair_key(group.scope, masked, a, b, keys[2], keys[3])
            out.append({
                "parties": [a, b], "cipher_secret": sealed.hex(), "mask_secret": masked.hex(),
                "seal_keys": [seal_key(group.scope, sealed, a, b, keys[0], keys[1]).hex(),
                              seal_key(group.scope, sealed, b, a, keys[1], keys[0]).hex()],
                "mask_seeds": [segment_seed(key, n).hex() for n in range(len(run.session.segments))],
            })  # fmt: skip
    return out


def _exchange(private: bytes, other: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public_key(other)))


def put(message: bytes, place: int, raw: bytes) -> bytes:
    return message[:place] + raw + message[place + len(raw) :]


def flip(message: bytes, place: int) -> bytes:
    place %= len(message)
    return put(message, place, bytes([message[place] ^ 1]))


Vector = tuple[str, str, Step, str, bytes]
"""Which run, who gets the message, at which step, what is expected, and the message."""


def negatives() -> dict[str, Vector]:
    return {**to_parties_share(), **to_parties_later(), **to_the_server()}


def to_parties_share() -> dict[str, Vector]:
    hbc, active = reach("honest-but-curious-4", Step.SHARE), reach("active-5", Step.SHARE)
    told, told_active = hbc.told[0], active.told[0]
    entry, entry_active = 2 + 64, 2 + active.session.entry_bytes
    at, at_active = (HEADER_BYTES + 2 + 2 * size + 2 for size in (entry, entry_active))
    entries = active.server._sharing.group
    listed = [entries.entry(p) for p in range(5)]

    def with_identity(certificate) -> bytes:
        bad = type(listed[2])(2, listed[2].cipher_key, listed[2].mask_key, certificate.certificate, listed[2].signature)
        return Roster.of([*listed[:2], bad, *listed[3:]]).encode(active.session)

    def roster(name: str, expect: str, message: bytes, run: str = "honest-but-curious-4") -> Vector:
        return (run, "party 0", Step.SHARE, expect, message)

    few = Roster.of([hbc.server._sharing.group.entry(p) for p in range(2)]).encode(hbc.session)
    made = {
        "roster-key-not-canonical": ("secagg_public_key", put(told, at, P)),
        "roster-key-of-low-order": ("secagg_public_key", put(told, at, bytes(32))),
        "roster-key-repeated": ("secagg_public_key", put(told, at, told[at - entry : at - entry + 32])),
        "roster-own-key-changed": ("secagg_public_key", put(told, HEADER_BYTES + 4, public_key(b"x" * 32))),
        "roster-too-few": ("secagg_threshold", few),
        "roster-not-sorted": ("secagg_message", put(put(told, at - 2, b"\3\0"), at - 2 + entry, b"\2\0")),
        "roster-one-byte-more": ("secagg_message", told + b"\0"),
        "roster-one-byte-less": ("secagg_message", told[:-1]),
        "roster-of-another-session": ("secagg_message", flip(told, 8)),
        "roster-of-another-version": ("secagg_message", put(told, 4, b"\2")),
    }
    out = {name: roster(name, *rest) for name, rest in made.items()}
    strangers = {
        "roster-key-swapped": ("secagg_public_key", put(told_active, at_active, public_key(b"x" * 32))),
        "roster-identity-expired": ("secagg_enrolment", with_identity(identity(9, expires_at=NOW_S))),
        "roster-identity-repeated": ("secagg_enrolment", with_identity(identity(("active-5", 3)))),
        "roster-certificate-forged": ("secagg_enrolment", flip(told_active, at_active + 64 + 32 + 8)),
    }
    return out | {name: roster(name, *rest, run="active-5") for name, rest in strangers.items()}


def to_parties_later() -> dict[str, Vector]:
    run, signing = reach("honest-but-curious-4", Step.MASK), reach("active-5", Step.UNMASK)
    delivery = run.told[0]
    d = Delivery.decode(run.session, 0, delivery, 4)
    first, rest = d.sealed[:80], d.sealed[80:]

    def changed(sharers: bytes, sealed: bytes) -> bytes:
        return Delivery(0, sharers, sealed).encode(run.session)

    told = reach("honest-but-curious-4", Step.UNMASK).session

    def survivors(members) -> bytes:
        return Survivors(bitmap(members, 4)).encode(told)

    listed = Signatures.decode(signing.session, signing.told[0]).signatures

    def signatures(*found) -> bytes:
        return Signatures(tuple(found)).encode(signing.session)

    masked = {
        "delivery-share-tampered": ("secagg_share", flip(delivery, -1)),
        "delivery-shares-reordered": ("secagg_share", changed(d.sharers, rest[:80] + first + rest[80:])),
        "delivery-too-few": ("secagg_threshold", changed(bitmap((0, 1), 4), first)),
        "delivery-count-against-bitmap": ("secagg_message", changed(d.sharers, d.sealed[:-80])),
        "delivery-without-the-party": ("secagg_message", changed(bitmap((1, 2, 3), 4), d.sealed)),
        "delivery-party-that-is-not-there": ("secagg_message", put(delivery, HEADER_BYTES, b"\x1f")),
    }
    unmasked = {
        "survivors-shrunk": ("secagg_threshold", survivors((0, 1))),
        "survivors-without-the-party": ("secagg_consistency", survivors((1, 2, 3))),
    }
    signed = {
        "signatures-one-wrong": ("secagg_consistency", flip(signing.told[0], -1)),
        "signatures-too-few": ("secagg_threshold", signatures(*listed[:3])),
        "signatures-one-by-a-dropout": ("secagg_consistency", signatures(*listed[:2], (2, listed[2][1]), *listed[2:])),
        "signatures-one-twice": ("secagg_message", signatures(listed[0], *listed)),
    }
    party, hbc = "party 0", "honest-but-curious-4"
    out = {k: (hbc, party, Step.MASK, *v) for k, v in masked.items()}
    out |= {k: (hbc, party, Step.UNMASK, *v) for k, v in unmasked.items()}
    return out | {k: ("active-5", party, Step.UNMASK, *v) for k, v in signed.items()}


def to_the_server() -> dict[str, Vector]:
    hbc = "honest-but-curious-4"
    messages = {step: reach(hbc, step).answer(0) for step in (Step.ADVERTISE, Step.SHARE, Step.MASK, Step.UNMASK)}
    signature = reach("active-5", Step.CONSISTENCY).answer(0)
    advert, shares, masked, opening = messages.values()
    made = {
        "advertisement-key-not-canonical": (Step.ADVERTISE, "secagg_public_key", put(advert, HEADER_BYTES, P)),
        "advertisement-one-key-for-both": (Step.ADVERTISE, "secagg_public_key", put(advert, 72, advert[40:72])),
        "advertisement-of-another-party": (Step.ADVERTISE, "secagg_message", put(advert, 6, b"\1\0")),
        "shares-one-missing": (Step.SHARE, "secagg_message", put(shares[:-80], HEADER_BYTES + 32, b"\2\0")),
        "masked-input-one-byte-less": (Step.MASK, "secagg_message", masked[:-1]),
        # 13 bits: 13 bytes, 7 bytes of nibbles, 2 bytes of single bits, whose last 3 bits belong to no coordinate
        "masked-input-padding": (Step.MASK, "secagg_message", put(masked, 61, bytes([masked[61] | 0x80]))),
        "opening-one-share-missing": (Step.UNMASK, "secagg_message", put(opening[:-32], HEADER_BYTES, b"\3\0")),
        "opening-of-another-kind": (Step.UNMASK, "secagg_message", put(opening, 5, b"\7")),
    }
    out = {k: (hbc, "server from 0", *v) for k, v in made.items()}
    forged = ("active-5", "server from 0", Step.CONSISTENCY, "secagg_consistency", flip(signature, -1))
    return out | {"signature-forged": forged}


def files() -> dict[str, dict[str, Any]]:
    """Return every file of the folder by its name."""
    out = {f"{name}.json": positive(name) for name in RUNS}
    for name, (run, to, step, expect, message) in negatives().items():
        vector = {"expect": expect, "run": run, "to": to, "step": step.name.lower(), "message": message.hex()}
        out[f"negative/{name}.json"] = vector
    assert AUTHORITY.public_key.hex() == out["active-5.json"]["session"]["authority"]
    return out


def text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


if __name__ == "__main__":
    for path in FOLDER.rglob("*.json"):
        path.unlink()
    for file, value in files().items():
        (FOLDER / file).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / file).write_text(text(value))
    print(f"{len(files())} files, {np.sum([p.stat().st_size for p in FOLDER.rglob('*.json')]) // 1000} kB")
