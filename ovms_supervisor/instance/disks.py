"""The writable disk of an instance: an overlay over the artifact's layers, ephemeral or kept under a name (blocking).

A persistent disk belongs to the layers that it was made over, which its record names: an overlay holds only what
differs from them, so over others it would be a heap of torn blocks.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cache.artifact import Artifact
from cache.chain_id import FLAT_SUFFIX
from cache.disk_layers import DiskChain, materialise_disks
from cache.store import Store
from ovms_supervisor.layout import overlay_name
from spec.decoding import NotDecodable, from_json
from spec.errors import CorruptStore, ImmutableOverride, InUse
from vmm.driver import Disk
from vmm.overlays import create_overlay

_RECORD = "disk.json"


class DiskRecord(msgspec.Struct, kw_only=True):
    """``disk.json`` of a persistent disk."""

    version: int = 1
    layers: list[str]
    """Digests of the artifact's disk layers below the overlays, base first."""
    backing: Path
    """The file that the lowest overlay names as its backing file."""
    overlays: list[str]
    """File names of the overlays, lowest first; the last one is written to, the others snapshots have frozen."""


def ephemeral(store: Store, artifact: Artifact, directory: Path, *, most_layers: int | None) -> Disk | None:
    """A new overlay that goes with the instance; None for an artifact without disk.

    It lies over at most that many layers: a deeper chain is made into one image first.
    """
    chain = materialise_disks(store, artifact, most_layers=most_layers)
    return None if chain is None else _new_overlay(directory / overlay_name(0), chain)


def persistent(
    store: Store, artifact: Artifact, directory: Path, *, must_be_new: bool, most_layers: int | None
) -> Disk:
    """The overlay kept in ``directory``, made on first use; ``most_layers`` as for an ephemeral one.

    Raises InUse if it was made over other layers; ImmutableOverride if it exists and ``must_be_new``: a RAM snapshot
    goes on with the disk as it was then, and with no other.
    """
    record = read_record(directory) if (directory / _RECORD).exists() else None
    if record is not None:  # it lies over what it was made over, whatever this runtime would prefer
        most_layers = 0 if record.backing.parent.name.endswith(FLAT_SUFFIX) else None
    chain = materialise_disks(store, artifact, most_layers=most_layers)
    assert chain is not None  # noqa: S101 - admission refuses a persistent disk of an artifact without one
    layers = [blob.digest for blob in artifact.disk_layers]
    if record is None:
        _claim(store, artifact, directory)
        record = DiskRecord(layers=layers, backing=chain.path, overlays=[overlay_name(0)])
        (directory / overlay_name(0)).unlink(missing_ok=True)  # of a start that was interrupted before the record
        disk = _new_overlay(directory / overlay_name(0), chain)
        write_record(directory, record)
        return disk
    if must_be_new:
        raise ImmutableOverride(
            f"the persistent disk {directory.name!r} exists, and a RAM snapshot goes on with its own disk only",
            path="$.overrides.disk",
            remedy="Choose another name, or boot cold (ovm run --cold).",
        )
    if record.layers != layers or record.backing != chain.path:
        raise InUse(
            f"the persistent disk {directory.name!r} was made over other layers than this artifact has",
            remedy="Start the artifact that it belongs to, or choose another name.",
            disk_layers=record.layers,
            artifact_layers=layers,
        )
    _claim(store, artifact, directory)
    return Disk(path=directory / record.overlays[-1], format="qcow2")


def _claim(store: Store, artifact: Artifact, directory: Path) -> None:
    """Keep the layers, without which a persistent disk is nothing, for as long as its directory exists."""
    store.claim(f"disk-{directory.name}", directory, [artifact.digest], durable=True)


def read_record(directory: Path) -> DiskRecord:
    """The record of a persistent disk. Raises CorruptStore."""
    try:
        return from_json((directory / _RECORD).read_bytes(), DiskRecord, dec_hook=_path)
    except (NotDecodable, OSError) as error:
        raise CorruptStore(f"{directory / _RECORD} cannot be read: {error}") from error


def write_record(directory: Path, record: DiskRecord) -> None:
    """Replace the record of a persistent disk."""
    new = directory / f"{_RECORD}.new"
    new.write_bytes(msgspec.json.encode(record, enc_hook=str))
    new.replace(directory / _RECORD)


def _new_overlay(path: Path, chain: DiskChain) -> Disk:
    create_overlay(path, chain.path, chain.format, chain.virtual_size_bytes)
    return Disk(path=path, format="qcow2")


def _path(kind: type, value: object) -> Path:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected {kind.__name__.lower()}, got {type(value).__name__}")  # becomes NotDecodable
