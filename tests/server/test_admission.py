"""The gate, in memory: who gets a credential, whose it is, and clocks that are set."""

import asyncio
import time

import msgspec
import pytest

from covey.admission.attestation import OpenVerifier
from covey.admission.limits import Limits
from covey.admission.tokens import TokenVerifier, issue_token
from covey.plans.signing import generate_owner_key, public_key_pem
from covey.server.admission import Gate
from covey.server.clock import steady_clock
from covey.server.config import ServerConfig
from covey.server.credentials import Credentials
from covey.types.errors import AttestationError, RateLimitedError, UsageError
from covey.wire.messages import Assignment, Enroll, Enrolled, encode_message

from . import parts
from .app import P, assert_failed, run

BACKEND = generate_owner_key()
NOW_S = 1_000_000.0


def token(**changes):
    return issue_token(BACKEND, **{"audience": "server", "population": P, "expires_at": int(NOW_S) + 60, **changes})


class Admitted:
    def __init__(self, verifier=None, **limits):
        self.wall_s, self.monotonic_s = NOW_S, 0.0
        self.credentials = Credentials(bytes(32))
        self.gate = Gate(
            self.credentials,
            verifier or TokenVerifier(BACKEND.public_key().public_bytes_raw(), "server"),
            Limits(**limits),
            wall_s=lambda: self.wall_s,
            monotonic_s=lambda: self.monotonic_s,
        )

    def enroll(self, attestation="", peer="192.0.2.1"):
        message = Enroll(population=P, attestation=attestation)
        return asyncio.run(self.gate.enroll(message, peer, NOW_S)).credential


def test_a_token_is_one_subject_however_often_and_wherever_it_is_shown():
    one, again = Admitted(), Admitted()  # as after a restart
    shown = token()
    subjects = {one.gate.admit(one.enroll(shown), NOW_S).subject for _ in range(3)}
    subjects.add(again.gate.admit(again.enroll(shown), NOW_S).subject)
    assert len(subjects) == 1 and len(one.gate.admit(one.enroll(token()), NOW_S).subject) == 32
    assert one.gate.admit(one.enroll(token()), NOW_S).subject not in subjects
    # Only the key that makes credentials could tell a subject from its token.
    assert Credentials(b"k" * 32).subject(b"a") != Credentials(bytes(32)).subject(b"a")


@pytest.mark.parametrize(
    "shown", ["", "x.y", token(audience="authority"), token(population="q"), token(expires_at=int(NOW_S))]
)
def test_without_a_token_of_its_own_nobody_is_admitted(shown):
    with pytest.raises(AttestationError):
        Admitted().enroll(shown)


def test_a_token_is_held_against_the_time_of_day():
    a, shown = Admitted(), token()
    a.wall_s += 61
    with pytest.raises(AttestationError):
        a.enroll(shown)


def test_an_open_door_gives_everybody_another_subject():
    a = Admitted(OpenVerifier())
    assert len({a.gate.admit(a.enroll(), NOW_S).subject for _ in range(20)}) == 20


def test_credentials_have_limits_of_their_own_and_renewal_is_no_way_around():
    a = Admitted(credential_burst=3, credential_per_s=1.0)
    shown, other = a.enroll(token()), a.enroll(token())
    mine = token()
    for _ in range(3):
        a.gate.admit(a.enroll(mine), NOW_S)  # a new credential each time
    with pytest.raises(RateLimitedError) as refused:
        a.gate.admit(a.enroll(mine), NOW_S)
    assert 0 < refused.value.retry_after_s <= 1
    a.gate.admit(shown, NOW_S)
    a.gate.admit(other, NOW_S)
    a.monotonic_s += 1.0
    a.gate.admit(a.enroll(mine), NOW_S)


def test_an_address_has_a_limit_and_a_forged_token_counts():
    a = Admitted(peer_burst=2, peer_per_s=1.0)
    for _ in range(2):
        with pytest.raises(AttestationError):
            a.enroll("forged")
    with pytest.raises(RateLimitedError):
        a.enroll(token())
    assert a.enroll(token(), peer="192.0.2.2")


def test_over_http(tmp_path):
    (tmp_path / "app.pub").write_bytes(public_key_pem(BACKEND.public_key()))

    async def scenario(s):
        live = token(expires_at=int(time.time()) + 60)
        for shown, wanted in ((live, 200), ("", 403), (live[:-1], 403)):
            got = await s.client.post("/v1/enroll", content=encode_message(Enroll(population=P, attestation=shown)))
            assert got.status_code == wanted
        assert_failed(got, 403, "attestation_refused")
        assert s.service.config.attestation

    run(scenario, enrolment="token", attestation={"key": str(tmp_path / "app.pub")})
    with pytest.raises(UsageError, match="enrolment: expected one of open, token"):
        Gate.of(ServerConfig(population=P, enrolment="attested"), Credentials(bytes(32)))


def test_a_steady_clock_starts_at_the_time_of_day_and_ignores_what_is_set():
    wall, monotonic = [5000.0], [7.0]
    now_s = steady_clock(lambda: wall[0], lambda: monotonic[0])
    assert now_s() == 5000.0
    monotonic[0] += 1.5
    for wall[0] in (0.0, 1e9):
        assert now_s() == 5001.5


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
def test_a_clock_that_is_set_ends_no_round_and_no_credential(monkeypatch, jump_s):
    rows, real_s = [], time.time

    async def scenario(s):
        got = await s.client.post("/v1/enroll", content=encode_message(Enroll(population=P)))
        bearer = msgspec.json.decode(got.content, type=Enrolled).credential
        s.headers = {"authorization": f"Bearer {bearer}"}
        first, second = await s.sessions()
        assert (await s.report(first)).status_code == 200
        monkeypatch.setattr(time, "time", lambda: real_s() + jump_s)
        await asyncio.sleep(0.05)  # the clock's keeper has looked
        assert (await s.report(second, parts.body(parts.values(seed=1)))).status_code == 200
        await s.until(lambda: rows)
        assert rows[0].status == "committed" and 0 <= rows[0].seconds < 60
        waiting = await asyncio.gather(s.check_in(), s.check_in())
        assert all(isinstance(w, Assignment) for w in waiting)

    run(scenario, on_round=rows.append)
