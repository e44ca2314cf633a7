"""``ovm generate-key-pair``, and the password of a key."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation
from spec.errors import Conflict, InvalidKey

PASSWORD_VARIABLE = "COSIGN_PASSWORD"  # noqa: S105 - the name of the variable


def ask_password(prompt: str = "Password of the private key", *, confirm: bool = False) -> bytes:
    """``COSIGN_PASSWORD`` if it is set (also to nothing, as Cosign does), else from the terminal. Raises InvalidKey."""
    given = os.environb.get(PASSWORD_VARIABLE.encode())
    if given is not None:
        return given
    if not os.isatty(0):
        raise InvalidKey(
            "the key needs a password, and there is no terminal to ask for it",
            remedy=f"Set {PASSWORD_VARIABLE}, to the empty string for a key without a password.",
        )
    answer: str = click.prompt(
        prompt, hide_input=True, default="", show_default=False, err=True, confirmation_prompt=confirm
    )
    return answer.encode()


@click.command(
    "generate-key-pair",
    cls=OvmCommand,
    examples=[
        "ovm generate-key-pair",
        "COSIGN_PASSWORD= ovm generate-key-pair --output-key-prefix ci",
        "ovm sign --key cosign.key demo:base && ovm verify --key cosign.pub demo:base",
    ],
)
@click.option(
    "--output-key-prefix",
    "prefix",
    type=click.Path(path_type=Path),
    default="cosign",
    metavar="PREFIX",
    help="The files are PREFIX.key and PREFIX.pub; default: cosign.",
)
@pass_invocation
def generate_key_pair_command(invocation: Invocation, prefix: Path) -> None:
    """Make a key to sign artifacts with, in two files as Cosign makes them: PREFIX.key and PREFIX.pub.

    The private key is encrypted with a password: COSIGN_PASSWORD, or asked for. Nothing is ever overwritten.
    """
    from cache.trust.keys import PrivateKey

    private, public = (prefix.with_name(f"{prefix.name}{suffix}") for suffix in (".key", ".pub"))
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise Conflict(f"{path} exists", remedy="Choose another --output-key-prefix.", path=str(path))
    key = PrivateKey.generate()
    sealed = key.sealed(ask_password("Password for the new private key", confirm=True))
    _write_new(private, sealed, 0o600)
    _write_new(public, key.public.pem, 0o644)
    if invocation.json:
        output.as_json({"private": str(private), "public": str(public), "fingerprint": key.public.fingerprint})
        return
    output.data(key.public.fingerprint)
    output.message(f"wrote {private} and {public}")


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:  # noqa: PTH123
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
