"""Cloud Hypervisor's own qcow2 reader on our overlay and our chains (QEMU's is asked throughout the other tests)."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from cache.disk_layers import materialise_disks
from cache.pack import pack
from cache.store import Store
from spec.qcow2 import HEAD_BYTES, build_overlay_header, parse_header
from tests.cache.conftest import Packing, run

GUEST = Path(__file__).parents[1] / "guest" / "build"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("cloud-hypervisor") is None, reason="cloud-hypervisor is not installed"),
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm can't be used"),
    pytest.mark.skipif(shutil.which("as") is None, reason="binutils, which build the test guest, are not installed"),
]

MOST_BACKING_FILES = 10
"""That Cloud Hypervisor opens below an overlay."""


def boot(guest: Path, overlay: Path, directory: Path) -> str:
    """Boot with the overlay as disk; the machine's messages if it did not come up."""
    serial, messages = directory / "serial", directory / "messages"
    serial.unlink(missing_ok=True)
    command = ["cloud-hypervisor", "--kernel", guest, "--memory", "size=64M", "--console", "off"]
    command += ["--serial", f"file={serial}", "--disk", f"path={overlay},backing_files=on,image_type=qcow2"]
    with messages.open("wb") as log:
        process = subprocess.Popen([str(each) for each in command], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            if serial.exists() and b"boot" in serial.read_bytes():
                assert parse_header(overlay.read_bytes()[:HEAD_BYTES]).dirty, "it marks what it writes to"
                return ""
            time.sleep(0.02)
    finally:
        process.terminate()
        process.wait(10)
    return messages.read_text()


def test_cloud_hypervisor_boots_with_our_overlay_on_our_chain(store: Store, packing: Packing, tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    run(GUEST, guest)
    disks = [tmp_path / "base"]
    disks[0].write_bytes(os.urandom(8192) + bytes((1 << 20) - 8192))
    while len(disks) <= MOST_BACKING_FILES:
        disks.append(tmp_path / f"diff-{len(disks)}")
        disks[-1].write_bytes(build_overlay_header(str(disks[-2]), "qcow2" if len(disks) > 2 else "raw", 1 << 20))
    overlay = tmp_path / "overlay"
    for layers, accepted in ((MOST_BACKING_FILES, True), (MOST_BACKING_FILES + 1, False)):
        artifact = store.artifact(pack(store, packing(kernel=guest, initrd=None, disks=tuple(disks[:layers]))))
        chain = materialise_disks(store, artifact)
        assert chain is not None
        overlay.write_bytes(build_overlay_header(str(chain.path), chain.format, chain.virtual_size_bytes))
        complaint = boot(guest, overlay, tmp_path)
        assert (complaint == "") is accepted, complaint
        assert ("nesting depth" in complaint) is not accepted
        run("qemu-img", "check", overlay)
        assert materialise_disks(store, artifact) == chain, "the layers were not written to"
