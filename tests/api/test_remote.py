"""The API over TCP: TLS always, and nobody without a certificate or the token."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ovms_supervisor.api.remote import listen_remotely
from ovms_supervisor.api.roles import Roles
from ovms_supervisor.config.settings import Listen
from spec.errors import InvalidConfig
from tests.api.conftest import Daemon
from tests.api.fake_supervisor import FakeSupervisor

TOKEN = "a-token-of-some-length"


@dataclass
class Authority:
    """Of the tests' own; makes certificates for peers."""

    directory: Path
    name: str

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        self.pem = self._write(self.name, self._sign(self.name, self._key.public_key(), ca=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        path = self.directory / f"{self.name}-{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return self._write(f"{self.name}-{name}", self._sign(name, key.public_key(), ca=False)), path

    def _sign(self, name: str, key: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        )
        if ca:
            usage = x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self.directory / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "theirs")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
def given(authority: Authority, token_file: Path) -> Listen:
    """All there is to configure."""
    cert, key = authority.issue("daemon")
    return Listen(address="127.0.0.1:0", cert=cert, key=key, client_ca=authority.pem, token_file=token_file)


@dataclass
class Call:
    """A client of the daemon's TCP port."""

    port: int
    tls: ssl.SSLContext | None

    def with_certificate(self, authority: Authority, name: str) -> Call:
        tls = ssl.create_default_context(cafile=str(self.authority.pem))
        tls.load_cert_chain(*authority.issue(name))
        return replace(self, tls=tls)

    authority: Authority = None  # type: ignore[assignment]

    async def __call__(self, target: str, *, method: str = "GET", authorization: str = "") -> tuple[int, Any]:
        """Status and body; 0 if there was no reply."""
        fields = f"Authorization: {authorization}\r\n" if authorization else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: ovms\r\nConnection: close\r\n{fields}\r\n"
        async with asyncio.timeout(20):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
                writer.write(head.encode())
                said = await reader.read()
                writer.close()
            except (ConnectionError, ssl.SSLError):
                return 0, None
        if not said.startswith(b"HTTP/1.1 "):
            return 0, None
        return int(said.split()[1]), json.loads(said.partition(b"\r\n\r\n")[2])


async def _served(supervisor: FakeSupervisor, directory: Path, listen: Listen) -> tuple[Daemon, int]:
    daemon = Daemon(supervisor, directory / "remote.sock")
    daemon.context.remote = await asyncio.to_thread(listen_remotely, listen)
    port: int = daemon.context.remote.listening.getsockname()[1]
    await daemon.start()
    return daemon, port


@pytest.fixture
async def daemon_and_call(
    supervisor: FakeSupervisor, tmp_path: Path, given: Listen, authority: Authority
) -> AsyncIterator[tuple[Daemon, Call]]:
    daemon, port = await _served(supervisor, tmp_path, given)
    yield daemon, Call(port, ssl.create_default_context(cafile=str(authority.pem)), authority)
    await daemon.stop()


async def test_the_token_or_a_certificate_opens(
    daemon_and_call: tuple[Daemon, Call], authority: Authority, stranger: Authority
) -> None:
    daemon, call = daemon_and_call
    for wrong in (
        "",
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        "Bearer \udcff".encode("utf-8", "replace").decode(),
    ):
        for target in ("/healthz", "/instances", "/nothing"):
            status, body = await call(target, authorization=wrong)
            assert (status, body["code"]) == (401, "caller.not_authenticated")
            assert TOKEN not in str(body)
    assert (await call("/instances", authorization=f"Bearer {TOKEN}"))[0] == 200
    assert (await call.with_certificate(authority, "ci")("/instances"))[0] == 200
    assert (await call.with_certificate(stranger, "ci")("/instances", authorization=f"Bearer {TOKEN}"))[0] == 0
    assert (await replace(call, tls=None)("/instances", authorization=f"Bearer {TOKEN}"))[0] == 0
    daemon.context.roles = Roles.of(("cert:ci",), ())
    assert (await call("/instances/nobody", method="DELETE", authorization=f"Bearer {TOKEN}"))[0] == 403
    assert (await call.with_certificate(authority, "other")("/instances/nobody", method="DELETE"))[0] == 403
    assert (await call.with_certificate(authority, "ci")("/instances/nobody", method="DELETE"))[0] == 404


async def test_without_a_token_only_a_certificate_opens(
    supervisor: FakeSupervisor, tmp_path: Path, given: Listen, authority: Authority
) -> None:
    daemon, port = await _served(supervisor, tmp_path, msgspec.structs.replace(given, token_file=None))
    call = Call(port, ssl.create_default_context(cafile=str(authority.pem)), authority)
    assert (await call("/instances", authorization=f"Bearer {TOKEN}"))[0] == 0
    assert (await call.with_certificate(authority, "ci")("/instances"))[0] == 200
    await daemon.stop()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cert": None}, "no TCP without TLS"),
        ({"key": None}, "no TCP without TLS"),
        ({"client_ca": None, "token_file": None}, "anybody could call"),
        ({"address": "127.0.0.1"}, "not HOST:PORT"),
        ({"address": ":80"}, "not HOST:PORT"),
        ({"address": "127.0.0.1:65536"}, "not HOST:PORT"),
        ({"address": "192.0.2.1:80"}, "cannot listen"),
        ({"client_ca": Path("/dev/null")}, "cannot be used"),
        ({"cert": Path("/nowhere")}, "cannot be used"),
        ({"token_file": Path("/nowhere")}, "No such file"),
        ({"token_file": Path("/dev/null")}, "not a plain file"),
    ],
)
def test_what_would_let_in_anybody_is_refused(given: Listen, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        listen_remotely(msgspec.structs.replace(given, **changes))


@pytest.fixture
def loose(request: pytest.FixtureRequest, given: Listen) -> Iterator[Path]:
    path = getattr(given, request.param)
    path.chmod(0o640)
    yield path
    path.chmod(0o600)


@pytest.mark.parametrize("loose", ["key", "token_file"], indirect=True)
def test_a_secret_that_others_can_read_is_refused(given: Listen, loose: Path) -> None:
    with pytest.raises(InvalidConfig, match="can be read by others"):
        listen_remotely(given)


def test_a_token_that_can_be_guessed_is_refused(given: Listen, token_file: Path) -> None:
    for token in ("", "short", "x" * 5000, "ümlaut-token-of-some-length"):
        token_file.write_text(token)
        with pytest.raises(InvalidConfig, match="a token has"):
            listen_remotely(given)
