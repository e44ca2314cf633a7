"""Commands on the local store: no daemon, real files."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Ovm


@pytest.fixture
def packed(ovm: Ovm, guest_kernel: Path) -> str:
    """The digest of demo:base, with memory, CPUs, a device and arguments."""
    out = ovm.ok(
        "pack", "-t", "demo:base", "--kernel", str(guest_kernel), "--memory=64M", "--cpus=2", "--ivshmem=mmio0:1M",
        "--args=console=ttyS0 quiet", "--author=\x1b[2Jsomebody",
    )  # fmt: skip
    return out.strip()


def test_pack_prints_the_digest_alone(ovm: Ovm, packed: str) -> None:
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", packed)
    assert (ovm.root / "blobs" / "sha256" / packed.removeprefix("sha256:")).is_file()


def test_packing_is_repeatable_at_a_given_time(ovm: Ovm, guest_kernel: Path) -> None:
    words = ["pack", "--kernel", str(guest_kernel), "--created", "2026-01-02T03:04:05"]
    first, second = (ovm.ok(*words, "-t", "demo:base") for _ in range(2))
    assert first == second


def test_ls(ovm: Ovm, packed: str) -> None:
    header, row = ovm.ok("ls").splitlines()
    assert header.split() == ["REFERENCE", "DIGEST", "KIND", "SIZE", "CREATED"]
    assert row.startswith("demo:base")
    assert packed[:19] in row
    assert "ago" in row or "just now" in row
    assert ovm.ok("ls", "-q").split() == [packed]
    (entry,) = ovm.json("ls")
    assert (entry["reference"], entry["digest"], entry["kind"]) == ("demo:base", packed, "base")


def test_ls_of_nothing(ovm: Ovm) -> None:
    assert len(ovm.ok("ls").splitlines()) == 1
    assert ovm.json("ls") == []
    assert ovm.ok("ls", "-q") == ""


def test_a_damaged_artifact_is_listed_and_can_be_removed(ovm: Ovm, packed: str) -> None:
    blob = ovm.root / "blobs" / "sha256" / packed.removeprefix("sha256:")
    content = bytearray(blob.read_bytes())
    content[10] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    assert "damaged" in ovm.ok("ls")
    result = ovm("inspect", "demo:base", "--format=json")
    assert result.code == 1
    assert result.problem["code"] == "digest.mismatch"
    ovm.ok("rmi", "demo:base")
    assert ovm.json("ls") == []


def test_inspect(ovm: Ovm, packed: str) -> None:
    described = ovm.json("inspect", "demo:base")
    assert described["digest"] == packed
    assert described["manifest"]["runtimeHints"]["defaultMemoryBytes"] == 64 << 20
    assert all(layer["present"] for layer in described["layers"])
    assert described["unknown_fields"] == []
    table = ovm.ok("inspect", packed[:19])
    assert "console=ttyS0 quiet" in table
    assert "\x1b" not in table
    assert "^[[2Jsomebody" in table


def test_inspect_raw_is_what_the_digest_is_of(ovm: Ovm, packed: str) -> None:
    raw = ovm("inspect", "demo:base", "--raw").raw
    layer = ovm.json("inspect", "demo:base")["layers"][0]
    assert "sha256:" + hashlib.sha256(raw).hexdigest() == layer["digest"]
    assert json.loads(raw)["name"] == "demo"


def test_tag_and_rmi(ovm: Ovm, packed: str) -> None:
    ovm.ok("tag", "demo:base", "localhost:5000/demo:copy")
    ovm.ok("tag", packed[:19], "demo:third")
    assert [each["reference"] for each in ovm.json("ls")] == ["demo:base", "demo:third", "localhost:5000/demo:copy"]
    assert ovm.ok("rmi", "demo:third").split() == ["demo:third"]
    assert list((ovm.root / "blobs" / "sha256").iterdir())
    assert sorted(ovm.ok("rmi", packed).split()) == ["demo:base", "localhost:5000/demo:copy"]
    assert ovm.json("ls") == []
    assert not list((ovm.root / "blobs" / "sha256").iterdir()), "with its last name an artifact leaves the disk"


def test_rmi_changes_nothing_if_one_name_is_wrong(ovm: Ovm, packed: str) -> None:
    result = ovm("rmi", "demo:base", "demo:typo")
    assert (result.code, result.raw) == (1, b"")
    assert "remedy: Run 'ovm ls'" in result.err
    assert len(ovm.json("ls")) == 1


def test_errors_as_json_have_the_stable_code(ovm: Ovm) -> None:
    result = ovm("inspect", "demo:no", "--format=json")
    assert (result.code, result.raw) == (1, b"")
    assert result.problem["code"] == "artifact.not_found"
    assert result.problem["remedy"]


def test_debug_shows_code_and_traceback(ovm: Ovm) -> None:
    assert "Traceback" not in ovm("inspect", "demo:no").err
    err = ovm("inspect", "demo:no", "--debug").err
    assert "artifact.not_found" in err
    assert "Traceback" in err


def test_a_file_that_is_no_kernel_is_refused(ovm: Ovm) -> None:
    result = ovm("pack", "-t", "x", "--kernel", "/etc/passwd")
    assert result.code == 1
    assert "not a kernel" in result.err
    assert ovm.json("ls") == []


def test_export_and_import_keep_the_digest(ovm: Ovm, packed: str, tmp_path: Path) -> None:
    for destination in (tmp_path / "layout", tmp_path / "layout.tar"):
        ovm.ok("export", "demo:base", str(destination))
        ovm.ok("rmi", "demo:base")
        assert ovm.ok("import", str(destination), "-t", "demo:base").strip() == packed
        assert ovm("export", "demo:base", str(destination)).code == 1  # never over what is there


def test_import_checks_every_blob(ovm: Ovm, packed: str, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    ovm.ok("export", "demo:base", str(layout))
    blob = max((layout / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\x00\xff")
    result = ovm("import", str(layout), "-t", "demo:bad", "--format=json")
    assert result.code == 1
    assert result.problem["code"] == "digest.mismatch"


@pytest.mark.real
def test_skopeo_copies_what_was_packed(ovm: Ovm, packed: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--insecure-policy", f"oci:{ovm.root}:demo:base", f"oci:{copy}:demo:base"],
        check=True,
    )
    (listed,) = json.loads((copy / "index.json").read_text())["manifests"]
    assert listed["digest"] == packed
