"""The authority's one request, in memory: what it answers, and how it refuses everything else."""

import asyncio

import httpx
import msgspec
import pytest

from covey.admission.attestation import OpenVerifier
from covey.admission.limits import Limits
from covey.authority.http import create_app
from covey.authority.registrar import Registrar
from covey.plans.signing import generate_owner_key
from covey.secagg import EnrolmentAuthority
from covey.wire.messages import MAX_MESSAGE_BYTES, Certified, Certify, ErrorBody, encode_message

GOOD = encode_message(Certify(population="p", identity_key="ab" * 32))


def run(scenario, verifier=None, **limits):
    registrar = Registrar(EnrolmentAuthority(generate_owner_key(), "p"), "p", verifier or OpenVerifier())
    app = create_app(registrar, Limits(**limits))

    async def main():
        network = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with asyncio.timeout(30), httpx.AsyncClient(transport=network, base_url="https://a") as client:
            await scenario(client)

    asyncio.run(main())


def refused(got, status, code):
    body = msgspec.json.decode(got.content, type=ErrorBody)
    assert (got.status_code, body.code) == (status, code)
    return body


def test_a_certificate_is_not_cached_by_anybody():
    async def scenario(client):
        got = await client.post("/v1/certify", content=GOOD)
        assert len(msgspec.json.decode(got.content, type=Certified).signature) == 128
        assert got.headers["cache-control"] == "no-store"

    run(scenario)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "wire_invalid"),
        (b"{", 400, "wire_invalid"),
        (b"\xff", 400, "wire_invalid"),
        (b'{"population": "p"}', 400, "wire_invalid"),
        (b'{"population": "p", "identity_key": 7}', 400, "wire_invalid"),
        (encode_message(Certify(population="q", identity_key="ab" * 32)), 404, "not_found"),
        (b" " * (MAX_MESSAGE_BYTES + 1), 413, "body_too_large"),
    ],
)
def test_a_message_that_cannot_be_read(content, status, code):
    async def scenario(client):
        refused(await client.post("/v1/certify", content=content), status, code)

    run(scenario)


def test_other_requests():
    async def scenario(client):
        refused(await client.get("/v1/certify"), 405, "wire_invalid")
        for path in ("/", "/v1/enroll", "/v1/certify/x"):
            refused(await client.post(path, content=GOOD), 404, "not_found")

    run(scenario)


def test_a_flood_is_told_when_to_come_again():
    async def scenario(client):
        for _ in range(2):
            assert (await client.post("/v1/certify", content=GOOD)).status_code == 200
        got = await client.post("/v1/certify", content=GOOD)
        assert refused(got, 429, "rate_limited").retry_after_s > 0 and int(got.headers["retry-after"]) >= 1

    run(scenario, peer_burst=2, peer_per_s=0.1)


def test_a_bug_of_a_verifier_is_a_500_that_tells_nothing():
    class Broken:
        def verify(self, attestation, population, now_s):
            raise RuntimeError("secret")

    async def scenario(client):
        got = await client.post("/v1/certify", content=GOOD)
        refused(got, 500, "error")
        assert b"secret" not in got.content

    run(scenario, Broken())
