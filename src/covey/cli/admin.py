"""What the administrator's commands share: where the server is, the credential, and the requests."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from covey.cli.options import file_path, read_file
from covey.types.errors import TransportError, UsageError

if TYPE_CHECKING:
    import httpx
    import msgspec

    from covey.wire.administration import PopulationDetails

__all__ = ["AdminClient", "Target", "admin_options", "connected", "url_of"]

M = TypeVar("M", bound="msgspec.Struct")

_TIMEOUT_S = 30.0
_ANYWHERE = ("0.0.0.0", "::")  # what a server listens on is no address to call


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A server to administer."""

    url: str
    token: str
    ca: Path | None


def admin_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which server is meant."""
    options = [
        click.option("--server", metavar="URL", help="https://host:port of the server."),
        click.option("--token-file", type=file_path, help="The administrator's token; DIR/admin.token with --dir."),
        click.option("--ca", type=file_path, help="Certificate authority to trust; DIR/authority/ca.pem with --dir."),
        click.option(
            "--dir",
            "directory",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="The server's directory: says the three above, on the server's machine.",
        ),
        click.option("--population", metavar="NAME", help="Which population, where the server has several."),
        click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def connected(
    server: str | None, token_file: Path | None, ca: Path | None, directory: Path | None, population: str | None
) -> "AdminClient":
    """Return a client for what the options say.

    Raises:
        UsageError: no server, or no token, or a file that cannot be read.
    """
    if directory is not None:
        server = server or url_of(directory)
        token_file = token_file or directory / "admin.token"
        ca = ca or directory / "authority" / "ca.pem"
    if server is None or token_file is None:
        missing = "--server URL" if server is None else "--token-file FILE"
        raise UsageError(missing, expected="it, or --dir DIR on the server's machine", got="neither")
    token = read_file(token_file, "--token-file").decode("ascii", "replace").strip()
    return AdminClient(Target(server, token, ca), population)


def url_of(directory: Path) -> str:
    """Return where the server of a directory listens.

    Raises:
        UsageError: its configuration does not say.
    """
    from covey.server.config import load_config

    config = load_config(directory / "server.toml")
    if config.port == 0:
        raise UsageError(
            "--dir", expected="a configuration with a port", got="port = 0", hint="add --server URL, as it was printed"
        )
    host = "localhost" if config.host in _ANYWHERE else config.host
    return f"https://{host}:{config.port}"


class AdminClient:
    """Sends an administrator's requests; use it as a context."""

    def __init__(self, target: Target, population: str | None = None, *, network: "httpx.BaseTransport | None" = None):
        """Prepare; nothing is sent yet.

        Args:
            target: the server and the credential.
            population: which; None: the only one that the server has.
            network: instead of the real one, for tests.

        Raises:
            UsageError: not an https URL, or no usable certificate file.
        """
        import httpx

        from covey.device.transport import tls_context

        if not target.url.startswith("https://"):
            raise UsageError("--server", expected="https://host:port", got=target.url)
        self._url = target.url
        self._population = population
        self._client = httpx.Client(
            base_url=target.url,
            verify=tls_context(target.ca),
            timeout=_TIMEOUT_S,
            trust_env=False,
            headers={"authorization": f"Bearer {target.token}", "user-agent": "covey"},
            transport=network,
        )

    def __enter__(self) -> "AdminClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    @property
    def population(self) -> str:
        """The population's name, asked for where it was not told."""
        from covey.wire.administration import Populations

        if self._population is None:
            names = self._send("GET", "/v1/admin/populations", Populations).populations
            if len(names) != 1:
                raise UsageError("--population", expected=f"one of {', '.join(names)}", got="none")
            self._population = names[0]
        return self._population

    def details(self) -> "PopulationDetails":
        """Return the population as it stands."""
        from covey.wire.administration import PopulationDetails

        return self._send("GET", "", PopulationDetails)

    def post(self, path: str, message: "msgspec.Struct | bytes", kind: type[M], **params: str) -> M:
        """Send a message, or bytes, to a path below the population's; return the answer."""
        from covey.wire.messages import encode_message

        body = message if isinstance(message, bytes) else encode_message(message)  # type: ignore[arg-type]
        return self._send("POST", path, kind, body, params)

    def _send(
        self, method: str, path: str, kind: type[M], body: bytes = b"", params: dict[str, str] | None = None
    ) -> M:
        import httpx
        import msgspec

        from covey.wire.messages import error_from_body

        if not path.startswith("/v1/"):
            path = f"/v1/admin/populations/{self.population}{path}"
        try:
            answer = self._client.request(method, path, content=body, params=params)
        except httpx.HTTPError as e:
            raise TransportError(
                f"server {self._url}",
                expected="an answer",
                got=str(e) or type(e).__name__,
                hint="is `covey serve` running there, and is --ca its authority?",
            ) from e
        if answer.status_code != 200:
            raise error_from_body(answer.status_code, answer.content, f"server {self._url}")
        return msgspec.json.decode(answer.content, type=kind)
