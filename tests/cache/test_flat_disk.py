"""A deep chain of layers as one image: the same content, made once, gone with its layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cache.artifact import Artifact
from cache.disk_layers import materialise_disks
from cache.pack import pack
from cache.prune import free, prune
from cache.store import Store
from spec.errors import HostLimit, MissingTool
from tests.cache.conftest import Packing, run

DEPTH = 12


@pytest.fixture
def deep(store: Store, packing: Packing, qemu_disk: tuple[Path, Path], tmp_path: Path) -> Artifact:
    """Each layer writes a cluster of its own, and over one that the layer below wrote."""
    disks = [qemu_disk[0]]
    for number in range(1, DEPTH):
        disks.append(tmp_path / f"layer-{number}.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disks[-2], "-F", "qcow2", disks[-1])
        for cluster in (number, number + 1):
            run("qemu-io", "-c", f"write -P {number} {cluster * 64}k 64k", disks[-1])
    return store.artifact(pack(store, packing("demo:deep", disks=tuple(disks))))


def test_a_deep_chain_becomes_one_image_of_the_same_content(store: Store, deep: Artifact) -> None:
    chain = materialise_disks(store, deep)
    assert chain is not None
    assert chain.layers == DEPTH
    assert materialise_disks(store, deep, most_layers=DEPTH) == chain, "not deeper than it may be"
    flat = materialise_disks(store, deep, most_layers=5)
    assert flat is not None
    assert (flat.layers, flat.format, flat.virtual_size_bytes) == (1, "qcow2", chain.virtual_size_bytes)
    info = json.loads(run("qemu-img", "info", "--output=json", flat.path))
    assert "backing-filename" not in info
    run("qemu-img", "compare", flat.path, chain.path)
    made = flat.path.stat()
    assert made.st_mode & 0o222 == 0
    assert materialise_disks(store, deep, most_layers=5) == flat
    assert flat.path.stat().st_ino == made.st_ino, "it is made once"


def test_it_goes_with_its_layers(store: Store, deep: Artifact) -> None:
    flat = materialise_disks(store, deep, most_layers=5)
    assert flat is not None
    assert prune(store) == []
    with store.pinned(deep.digest):
        assert prune(store, everything=True) == []
    assert flat.path.exists()
    assert len([each for each in free(store, [store.untag("demo:deep")]) if each.what.endswith("-flat")]) == 1
    assert not list(store.disks_dir.iterdir())


def test_without_the_tool_or_where_it_fails_nothing_is_left(
    store: Store, deep: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = materialise_disks(store, deep)
    before = sorted(store.disks_dir.iterdir())
    tools = tmp_path / "tools"
    tools.mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tools))
        with pytest.raises(MissingTool, match="qemu-img"):
            materialise_disks(store, deep, most_layers=5)
        (tools / "qemu-img").write_text("#!/bin/sh\necho half > $8\necho cannot do it >&2\nexit 1\n")
        (tools / "qemu-img").chmod(0o755)
        with pytest.raises(HostLimit, match="cannot do it"):
            materialise_disks(store, deep, most_layers=5)
    assert sorted(store.disks_dir.iterdir()) == before
    assert chain is not None
