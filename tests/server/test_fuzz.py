"""Every route fuzzed by its OpenAPI document: no failure of the server, and every answer as the document says."""

import asyncio
import datetime
import threading

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from covey.plans.signing import public_key_pem
from covey.server.openapi import ADMIN, BINARY, OPERATIONS, openapi_document
from covey.types.tensors import sha256_hex

from . import app as apps
from . import parts

EXAMPLES = 25
"""For each route and each of valid and broken requests."""

SCHEMA = schemathesis.openapi.from_dict(openapi_document())
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


class Background:
    """The application on an event loop of its own thread, so that its clock runs between two requests."""

    def __init__(self, directory):
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        self.context = apps.serving(poll_s=0.01, directory=self.directory, admin_token=TOKEN)
        self.served = self.run(self.context.__aenter__())
        return self

    def __exit__(self, *exception):
        self.run(self.context.__aexit__(*exception))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def send(self, request):
        return self.run(self.served.client.send(request))


@pytest.fixture(scope="module")
def background(tmp_path_factory):
    directory = tmp_path_factory.mktemp("server")
    (directory / "owner.pub").write_bytes(public_key_pem(parts.world.OWNER.public_key()))
    with Background(directory) as running:
        yield running


TOKEN = "t" * 43
PLAN = sha256_hex(parts.world.plan_bytes())
REAL = {"population": parts.POPULATION, "sha256": PLAN, "step": "mask", "task": parts.TASK}


VALID, BROKEN = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
# A path alone cannot be broken: any text is one, and what is found under it decides.
RUNS = [(o, m) for o in OPERATIONS for m in (VALID, BROKEN) if m is VALID or o.query or o.body not in (None, BINARY)]


@pytest.mark.parametrize(("operation", "mode"), RUNS, ids=[f"{o.method} {o.path} {m.value}" for o, m in RUNS])
def test_every_answer_is_one_that_the_document_knows(background, operation, mode):
    load_all_checks()
    cases = SCHEMA[operation.path][operation.method].as_strategy(generation_mode=mode)

    @given(cases, st.booleans(), st.booleans())
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def fuzz(case, authorized, real):
        if real:
            for name in case.path_parameters:
                case.path_parameters[name] = REAL.get(name, case.path_parameters[name])
        try:
            made = requests.Request(**case.as_transport_kwargs(base_url="https://s")).prepare()
        except (requests.RequestException, UnicodeError, ValueError):
            assume(False)
        headers = {k: v for k, v in made.headers.items() if k.lower() != "authorization"}
        if authorized:
            headers |= (
                {"authorization": f"Bearer {TOKEN}"} if operation.security == ADMIN else background.served.headers
            )
        try:
            request = httpx.Request(made.method, made.url, headers=headers, content=made.body)
        except (httpx.InvalidURL, UnicodeError, TypeError):
            assume(False)
        answer = background.send(request)
        answer.read()
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        if answer.status_code != 503:
            case.validate_response(answer, checks=[*CHECKS, not_a_server_error])

    fuzz()


def test_a_failure_of_the_server_would_be_seen(background):
    """The fuzz is worth nothing if an answer outside the document passed."""
    load_all_checks()
    case = SCHEMA["/healthz"]["GET"].Case()

    def answered(status, **content):
        response = httpx.Response(status, **content, request=httpx.Request("GET", "https://s/healthz"))
        response.elapsed = datetime.timedelta()
        return response

    for wrong in (
        answered(418, json={"code": "error", "message": ""}),
        answered(200, json={"status": 5}),
        answered(200, text="fine"),
        answered(503, json={"code": "not_found", "message": ""}),
    ):
        with pytest.raises((schemathesis.errors.FailureGroup, AssertionError)):
            case.validate_response(wrong, checks=CHECKS)
    case.validate_response(answered(200, json={"status": "ok"}), checks=CHECKS)
