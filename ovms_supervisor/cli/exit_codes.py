"""The one place that decides how ``ovm`` ends.

``run`` follows docker and podman: 125 to 127 tell a failure of the machinery from one of the artifact, so that a
script need not read messages.
"""

from __future__ import annotations

from typing import Final

from spec import errors

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
RUN_FAILED: Final = 125
RUN_IMPOSSIBLE: Final = 126
RUN_NOT_FOUND: Final = 127
INTERRUPTED: Final = 130

HELP: Final = """\
Exit codes:
  0    done
  1    the operation failed
  2    wrong usage
  125  run: failed before the machine ran (daemon, host, VMM)
  126  run: the artifact cannot run here (unsupported, incompatible, damaged, not admitted)
  127  run: no such artifact
  130  interrupted (Ctrl-C)"""

_IMPOSSIBLE = (errors.Unsupported, errors.Corrupt, errors.InvalidManifest, errors.NoUsableRuntime)
_NOT_ADMITTED = (errors.PolicyRejected, errors.InvalidPolicy)
_NOT_FOUND = (errors.ArtifactNotFound, errors.BlobNotFound, errors.FileMissing)


def exit_code(error: errors.OvmsError, command: str) -> int:
    """The exit code for an error of the command of that name."""
    if command != "run":
        return FAILED
    if isinstance(error, _NOT_FOUND):
        return RUN_NOT_FOUND
    asked_wrong = isinstance(error, errors.ImmutableOverride)  # the artifact could run, but not so
    if isinstance(error, _NOT_ADMITTED):
        return RUN_IMPOSSIBLE
    return RUN_IMPOSSIBLE if isinstance(error, _IMPOSSIBLE) and not asked_wrong else RUN_FAILED
