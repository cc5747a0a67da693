"""The HTTP application in memory, with a client that speaks the protocol."""

import asyncio
import contextlib

import httpx
import msgspec

from covey.server.admin import Admin
from covey.server.config import RoundConfig, ServerConfig
from covey.server.credentials import Credentials
from covey.server.http import create_app
from covey.server.service import Service
from covey.server.settings import RoundSettings
from covey.wire.messages import Assignment, CheckIn, ComeBack, ErrorBody, PopulationStatus, encode_message

from . import parts

P = parts.POPULATION
CHECK_IN = encode_message(CheckIn(population=P))


class Served:
    """The application, a client, and a credential."""

    def __init__(self, service, app, client):
        self.service, self.app, self.client = service, app, client
        self.headers = self.credential()

    async def post(self, path, content, **headers):
        return await self.client.post(path, content=content, headers={**self.headers, **headers})

    def credential(self, subject=""):
        """Return the header of a new credential: a device of its own, unless a subject is named."""
        return {"authorization": f"Bearer {self.service.credentials.issue(P, self.service.now_s(), subject)}"}

    async def check_in(self):
        """Check in as another device each time: one credential counts once in a round."""
        got = await self.post("/v1/checkin", CHECK_IN, **self.credential())
        assert got.status_code == 200
        return msgspec.json.decode(got.content, type=Assignment if b'"session"' in got.content else ComeBack)

    async def sessions(self, count=2):
        """Return the sessions of a new round."""
        return [a.session for a in await asyncio.gather(*(self.check_in() for _ in range(count)))]

    async def report(self, session, data=None):
        return await self.post(f"/v1/sessions/{session}/report", parts.body() if data is None else data)

    async def status(self, after=0):
        got = await self.client.get(f"/v1/populations/{P}", params={"after": after})
        return msgspec.json.decode(got.content, type=PopulationStatus)

    async def until(self, holds):
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def serving(
    storage=None,
    on_round=lambda summary: None,
    lifetime_s=3600.0,
    rounds=None,
    directory=None,
    admin_token="",
    **fields,
):
    if storage is None:
        storage, _ = parts.storage_with_population()
    base = {"goal": 2, "over_selection": 1.0, "min_fraction": 1.0, "patience_s": 0.0}
    config = ServerConfig(population=P, round=RoundConfig(**{**base, **(rounds or {})}), **fields)
    if storage.tasks(P):
        parts.set_rounds(storage, RoundSettings(**msgspec.structs.asdict(config.round)))
    credentials = Credentials(bytes(32), lifetime_s=lifetime_s)
    service = Service(storage, config, credentials, on_round=on_round, directory=directory)
    admin = Admin(service, storage, directory, config, admin_token).routes() if admin_token else ()
    app = create_app(service, more=admin)
    network = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=network, base_url="https://s") as client:
        yield Served(service, app, client)


def run(scenario, **options):
    """Run an asynchronous scenario with a served population."""

    async def main():
        async with asyncio.timeout(60), serving(**options) as served:
            await scenario(served)

    asyncio.run(main())


def assert_failed(got, status, code, text=""):
    body = msgspec.json.decode(got.content, type=ErrorBody)
    assert (got.status_code, body.code) == (status, code) and text in body.message
    assert got.headers["content-type"] == "application/json"
    return body


async def raw(app, method, path, headers, chunks, hang_up=None):
    """Call the application as a server does; return the status and the content."""
    sent, left = [], list(chunks)
    done = asyncio.Event()

    async def receive():
        if left:
            chunk = left.pop(0)
            if isinstance(chunk, asyncio.Event):
                await chunk.wait()
                chunk = b""
            return {"type": "http.request", "body": chunk, "more_body": bool(left)}
        await (hang_up or done).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "https",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("s", 443),
    }
    await app(scope, receive, send)
    done.set()
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)
