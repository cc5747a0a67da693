"""The local authority: its files, their modes, and certificates that a TLS client accepts."""

import ssl
import stat

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from covey.server.authority import ensure_authority, write_private
from covey.types.errors import StorageError, UsageError

FILES = ("ca.key", "ca.pem", "server.key", "server.pem")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    path = tmp_path_factory.mktemp("authority") / "made" / "on the way"
    ensure_authority(path)
    return path


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_it_makes_four_files_and_keys_are_their_owners_alone(authority):
    assert tuple(sorted(p.name for p in authority.iterdir())) == FILES
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((authority / name).stat().st_mode) == 0o600
        serialization.load_pem_private_key((authority / name).read_bytes(), None)


def test_a_complete_set_is_left_alone(authority):
    before = [(authority / name).read_bytes() for name in FILES]
    ensure_authority(authority, hosts=("elsewhere",))
    assert [(authority / name).read_bytes() for name in FILES] == before


def test_the_servers_certificate_is_signed_by_the_authority_and_by_no_other(authority, tmp_path):
    server, ca = certificate(authority / "server.pem"), certificate(authority / "ca.pem")
    server.verify_directly_issued_by(ca)
    ensure_authority(tmp_path)
    with pytest.raises(InvalidSignature):
        server.verify_directly_issued_by(certificate(tmp_path / "ca.pem"))


def test_the_certificates_say_what_they_are_for(authority):
    server, ca = certificate(authority / "server.pem"), certificate(authority / "ca.pem")
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    key = serialization.load_pem_private_key((authority / "server.key").read_bytes(), None)
    assert key.public_key() == server.public_key()


def handshake(authority, host, trusted):
    """Shake hands in memory; raise what the client raises."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(authority / "server.pem", authority / "server.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.create_default_context(cafile=trusted / "ca.pem")
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client.version()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_tls_client_that_trusts_the_authority_accepts_it(authority, host):
    assert handshake(authority, host, authority) == "TLSv1.3"


def test_a_tls_client_refuses_another_host_and_another_authority(authority, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(authority, "elsewhere", authority)
    ensure_authority(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority, "localhost", tmp_path)


@pytest.mark.parametrize("missing", FILES)
def test_a_partial_set_is_refused_and_left_alone(tmp_path, missing):
    for name in FILES:
        if name != missing:
            (tmp_path / name).write_text(name)
    with pytest.raises(UsageError, match="or none of them") as caught:
        ensure_authority(tmp_path)
    assert "restore the missing files" in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(set(FILES) - {missing})


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        ensure_authority(tmp_path / "file" / "authority")


def test_a_private_file_is_never_overwritten(tmp_path):
    write_private(tmp_path / "key", b"first")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
