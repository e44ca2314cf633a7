"""Run schemathesis against a daemon of one's own. Run by scripts/contract.

schemathesis speaks TCP only, and the daemon offers TCP only with TLS and a token: so that is tried as well.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scripts.demo.daemon import private_daemon

_DOCUMENT = Path(__file__).parents[1] / "spec" / "api" / "ovms-runtime.openapi.yaml"
_ENDLESS = ("/events", "/logs/{instance_id}")
_OF_OTHERS = ("/pull", "/push")
"""What registries have to answer; without one the right reply is 502, which is taken for an error of ours."""
_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main(schemathesis: str, arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        token = secrets.token_hex(16)
        _write(directory / "token", token.encode())
        _certify(directory)
        port = _free_port()
        settings = {
            "OVMS_LISTEN_ADDRESS": f"127.0.0.1:{port}",
            "OVMS_LISTEN_CERT": str(directory / "cert.pem"),
            "OVMS_LISTEN_KEY": str(directory / "key.pem"),
            "OVMS_LISTEN_TOKEN_FILE": str(directory / "token"),
        }
        with private_daemon(settings, parent=Path("/dev/shm")):
            command = [schemathesis, "run", str(_DOCUMENT), "--url", f"https://127.0.0.1:{port}"]
            command += ["--header", f"Authorization: Bearer {token}", "--tls-verify", str(directory / "cert.pem")]
            command += ["--checks", _CHECKS, "--phases", "examples,coverage,fuzzing", "--request-timeout", "20"]
            command += [word for path in (*_ENDLESS, *_OF_OTHERS) for word in ("--exclude-path", path)]
            return subprocess.run([*command, *arguments], check=False).returncode


def _certify(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a daemon to be tried")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(directory / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    _write(directory / "key.pem", key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
