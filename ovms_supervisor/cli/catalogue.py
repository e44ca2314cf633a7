"""Which commands there are, where each is defined, and its one line in ``ovm --help``.

The help of the group is printed from this table alone: no command module is imported for it, which keeps it fast.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """A command: the module under ``cli.commands`` that has a click command of that name, and its short help."""

    module: str
    summary: str


SECTIONS: Final[dict[str, dict[str, Entry]]] = {
    "Machines": {
        "run": Entry("run", "Start machines from an artifact and print their ids."),
        "ps": Entry("machines", "List machines."),
        "status": Entry("machines", "Show everything about a machine."),
        "logs": Entry("logs", "Print the console of a machine."),
        "stop": Entry("lifecycle", "Stop machines."),
        "pause": Entry("lifecycle", "Halt the CPUs of machines."),
        "resume": Entry("lifecycle", "Let paused machines go on."),
        "rm": Entry("lifecycle", "Remove stopped machines."),
        "snapshot": Entry("snapshot", "Save a machine as a new artifact."),
        "warm": Entry("warm", "Keep clones parked, to be started in a moment."),
        "inject": Entry("inject", "Write or read the shared memory of a machine."),
        "events": Entry("events", "Print what happens, as it happens."),
    },
    "Artifacts": {
        "pack": Entry("pack", "Make an artifact of a kernel, an initrd and disks."),
        "pull": Entry("pull", "Fetch an artifact from a registry."),
        "push": Entry("push", "Store an artifact in a registry."),
        "ls": Entry("artifacts", "List local artifacts."),
        "inspect": Entry("inspect", "Show the manifest of an artifact."),
        "tag": Entry("artifacts", "Give an artifact another name."),
        "rmi": Entry("artifacts", "Remove names of artifacts, and what only they need."),
        "prune": Entry("prune", "Remove what nobody refers to any more."),
        "import": Entry("layout", "Read an artifact from a directory or tar."),
        "export": Entry("layout", "Write an artifact to a directory or tar."),
    },
    "Trust": {
        "sign": Entry("signing", "Sign an artifact."),
        "verify": Entry("signing", "Check who signed an artifact."),
        "policy": Entry("policy", "Explain what the policy says of an artifact."),
        "generate-key-pair": Entry("keys", "Make a key to sign artifacts with."),
    },
    "Registries": {
        "login": Entry("login", "Log in to a registry."),
        "logout": Entry("login", "Forget the login at a registry."),
    },
    "Host": {
        "serve": Entry("serve", "Run the daemon."),
        "service": Entry("service", "Run the daemon under systemd."),
        "images": Entry("images", "List the RAM images that are resident, or free them."),
        "doctor": Entry("doctor", "Check what this host can do, and how to mend it."),
        "config": Entry("config", "Show each setting and where it comes from."),
        "version": Entry("version", "Show versions."),
        "completion": Entry("completion", "Print the completion script of a shell."),
    },
}

ENTRIES: Final[dict[str, Entry]] = {name: entry for section in SECTIONS.values() for name, entry in section.items()}
