"""A bare ASGI application on the stack of the server (uvicorn, Starlette, TLS 1.3): it reads a body and says so.

``python -m benchmarks.bare_server AUTHORITY``: what any server of this kind costs, to compare Covey's with.
"""

import socket
import ssl
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_ANSWER = b'{"retry_after_s":1.0,"reason":"not_selected"}'


async def _take(request: Request) -> Response:
    async for _ in request.stream():
        pass
    return Response(_ANSWER, media_type="application/json", headers={"cache-control": "no-store"})


def main() -> None:
    authority = Path(sys.argv[1])
    app = Starlette(
        routes=[
            Route("/v1/checkin", _take, methods=["POST"]),
            Route("/v1/sessions/{session}/report", _take, methods=["POST"]),
        ]
    )
    config = uvicorn.Config(
        app, ssl_certfile=authority / "server.pem", ssl_keyfile=authority / "server.key", log_config=None,
        log_level="error", access_log=False, server_header=False,
    )  # fmt: skip
    config.load()
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    print(f"serving on https://127.0.0.1:{listener.getsockname()[1]}, bare", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
