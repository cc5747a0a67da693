"""Run an authority from its directory, as ``covey authority init`` makes it.

::

    DIR/authority.key   the key that certifies (mode 0600): nobody else may have it, least of all the server
    DIR/authority.pub   its public half, which the plan names and the application pins
    DIR/authority.toml  the configuration
    DIR/tls/            certificate and key of its HTTPS endpoint
"""

from collections.abc import Callable
from pathlib import Path

from covey.admission.attestation import load_verifier
from covey.admission.listening import TlsServer, listen, tls_config
from covey.admission.verifier import AttestationSettings
from covey.authority.config import AuthorityConfig
from covey.authority.http import create_app
from covey.authority.registrar import Registrar
from covey.plans.signing import load_private_key
from covey.secagg import EnrolmentAuthority
from covey.types.errors import UsageError

__all__ = ["serve"]


def serve(directory: Path, config: AuthorityConfig, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        directory: see above.
        config: whom to certify, and how.
        on_ready: called once with the URL, when connections are accepted.

    Raises:
        PortInUseError: something else listens there.
        UsageError: a file or a value that cannot be used.
    """
    path = directory / "authority.key"
    try:
        key = load_private_key(path.read_bytes(), f"file {path}")
    except OSError as e:
        raise UsageError(f"file {path}", expected="a readable file", got=e.strerror or "an error") from e
    verifier = load_verifier(config.enrolment, AttestationSettings("authority", directory, config.attestation))
    registrar = Registrar(
        EnrolmentAuthority(key, config.population),
        config.population,
        verifier,
        lifetime_s=config.lifetime_s,
        max_remembered=config.max_remembered,
    )
    with listen(config.host, config.port) as listener:
        url = f"https://{config.host}:{listener.getsockname()[1]}"
        serving = tls_config(create_app(registrar, config.limits), directory / "tls", config.limits)
        TlsServer(serving, on_ready=lambda: on_ready(url)).run(sockets=[listener])
