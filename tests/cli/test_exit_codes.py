from __future__ import annotations

import pytest

from ovms_supervisor.cli.exit_codes import exit_code
from spec import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ArtifactNotFound, 127),
        (errors.FileMissing, 127),
        (errors.IncompatibleSnapshot, 126),
        (errors.UnsupportedManifest, 126),
        (errors.InvalidManifest, 126),
        (errors.DigestMismatch, 126),
        (errors.NoUsableRuntime, 126),
        (errors.DaemonUnreachable, 125),
        (errors.VmmExited, 125),
        (errors.NoSpace, 125),
        (errors.NameInUse, 125),
        (errors.ImmutableOverride, 125),
    ],
)
def test_run_tells_by_its_code_what_failed(error: type[errors.OvmsError], code: int) -> None:
    assert exit_code(error("x"), "run") == code


def test_other_commands_fail_with_1() -> None:
    assert {exit_code(kind("x"), "stop") for kind in errors.error_classes()} == {1}


def test_every_error_has_a_code_of_run() -> None:
    assert {exit_code(kind("x"), "run") for kind in errors.error_classes()} <= {125, 126, 127}
