"""``ovm pull`` and ``ovm run`` of a registry, with skopeo and Debian's docker-registry as they come."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cache.docker_registry import docker_registry

if TYPE_CHECKING:
    from tests.cli.conftest import Ovm

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed"),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def remote(ovm: Ovm, registry: str, guest_kernel: Path, tmp_path: Path) -> tuple[str, str]:
    """An artifact that skopeo has put there from another store: its reference and digest."""
    elsewhere = tmp_path / "elsewhere"
    words = ("pack", "-t", "demo:base", "--kernel", str(guest_kernel), "--memory=32M")
    digest = ovm.ok(*words, OVMS_ROOT=str(elsewhere)).strip()
    reference = f"{registry}/demo/web:base"
    skopeo("--dest-tls-verify=false", f"oci:{elsewhere}:demo:base", f"docker://{reference}")
    return reference, digest


def skopeo(*words: str) -> None:
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_pull_prints_the_digest_and_tells_how_far_it_is(ovm: Ovm, remote: tuple[str, str]) -> None:
    reference, digest = remote
    done = ovm("pull", reference)
    assert (done.code, done.out.strip()) == (0, digest), done.err
    assert re.search(rf"^{digest}: 2 blobs, ", done.err, re.MULTILINE)
    assert re.search(r"^sha256:[0-9a-f]{12} kernel: done, ", done.err, re.MULTILINE)
    assert re.search(r"^pulled .* MB/s", done.err, re.MULTILINE)
    assert "\x1b" not in done.err
    assert [each["reference"] for each in ovm.json("ls")] == [reference]

    again = ovm.json("pull", reference)
    assert (again["digest"], again["network_bytes"]) == (digest, 0)
    assert again["there_bytes"] > 0
    quiet = ovm("pull", "-q", f"{reference}@{digest}")
    assert (quiet.out.strip(), quiet.err) == (digest, "")


def test_what_is_wrong_with_a_reference_is_told(ovm: Ovm, remote: tuple[str, str]) -> None:
    assert ovm("pull", "demo:base").code == 2
    missing = ovm("pull", remote[0] + "r", "--format=json")
    assert (missing.code, missing.problem["code"]) == (1, "artifact.not_found")
    assert ovm.json("ls") == []


def test_packing_takes_a_kernel_from_there(ovm: Ovm, remote: tuple[str, str], guest_kernel: Path) -> None:
    reference, digest = remote
    packed = ovm.ok("pack", "-t", "mine:1", "--kernel", reference, "--memory=32M", "--created=2026-01-02").strip()
    same = ovm.ok("pack", "-t", "mine:1", "--kernel", str(guest_kernel), "--memory=32M", "--created=2026-01-02")
    assert packed == same.strip() != digest
    for wrong in ("http://127.0.0.1/vmlinuz", f"{reference}#x y", "boot/vmlinuz", "missing"):
        assert ovm("pack", "-t", "mine:2", "--kernel", wrong).code == 2, wrong
    unsure = ovm("pack", "-t", "mine:2", "--kernel", "https://127.0.0.1/vmlinuz", "--format=json")
    assert unsure.problem["code"] == "reference.invalid"


def test_a_copy_runs_and_its_snapshot_comes_back(ovm: Ovm, remote: tuple[str, str]) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu is not installed")
    reference, digest = remote
    try:
        never = ovm("run", "--pull=never", reference, "--format=json")
        assert (never.code, never.problem["code"]) == (127, "artifact.not_found")
        ovm.ok("run", "--runtime=qemu", "--name=web", reference)
        assert ovm.json("status", "web")["manifest"] == {"ref": reference, "digest": digest}
        warm = reference.replace(":base", ":warm")
        saved = ovm.ok("snapshot", "web", "-t", warm).strip()
        ovm.ok("rm", "-f", "web")
        ovm.ok("rmi", warm)
        ovm.ok("run", "--name=clone", warm)
        clone = ovm.json("status", "clone")
        assert (clone["manifest"]["digest"], clone["boot"], clone["status"]) == (saved, "restore", "running")
    finally:
        ovm("rm", "-f", *ovm("ps", "-aq").out.split())
        ovm("serve", "--stop")
