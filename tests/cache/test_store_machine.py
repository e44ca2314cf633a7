"""The store's state against a model, whatever the order of calls, seen through two store objects at once."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache.compose import StoredBlob, compose
from cache.store import Store
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import ArtifactNotFound
from spec.manifest import decode_manifest

NAMES = st.sampled_from(["a:1", "a:2", "b:1"])
VARIANTS = st.integers(0, 3)


def manifest_of(kernel: Digest, variant: int) -> bytes:
    document = {
        "schemaVersion": 1,
        "mediaType": media_types.MANIFEST,
        "name": "a",
        "version": str(variant),
        "kernel": {"ref": kernel},
    }
    return json.dumps(document).encode()


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.stores = (Store(self.directory / "s"), Store(self.directory / "s"))
        for each in self.stores:
            each.create()
        self.names: dict[str, Digest] = {}
        self.listed: set[Digest] = set()
        self.blobs_of: dict[Digest, set[Digest]] = {}
        self.pinned: list[tuple[Store, Digest]] = []

    @rule(which=st.integers(0, 1), variant=VARIANTS, name=st.none() | NAMES)
    def put(self, which: int, variant: int, name: str | None) -> None:
        store = self.stores[which]
        with store.adding() as added:
            kernel = store.put_bytes(b"kernel %d" % (variant // 2))
            manifest_bytes = manifest_of(kernel, variant)
            document = store.put_bytes(manifest_bytes)
            added += kernel, document
            oci = compose(decode_manifest(manifest_bytes), manifest_bytes, {kernel: StoredBlob(size_bytes=8)})
            digest = store.put_artifact(oci, name)
        self.blobs_of[digest] = {digest, kernel, document, digest_of(b"{}")}
        self.listed.add(digest)
        if name is not None:
            self.names[name] = digest

    @rule(which=st.integers(0, 1), variant=VARIANTS)
    def fail(self, which: int, variant: int) -> None:
        with contextlib.suppress(ZeroDivisionError), self.stores[which].adding() as added:
            added.append(self.stores[which].put_bytes(b"kernel %d" % (variant // 2)))
            self.stores[1 - which].remove_unreferenced()
            assert self.stores[which].has_blob(added[0])
            raise ZeroDivisionError

    @rule(which=st.integers(0, 1), name=NAMES, other=NAMES)
    def tag(self, which: int, name: str, other: str) -> None:
        if other in self.names:
            self.stores[which].tag(name, self.names[other])
            self.names[name] = self.names[other]

    @rule(which=st.integers(0, 1), name=NAMES)
    def untag(self, which: int, name: str) -> None:
        try:
            digest = self.stores[which].untag(name)
        except ArtifactNotFound:
            assert name not in self.names
            return
        assert self.names.pop(name) == digest
        if digest not in self.names.values():
            self.listed.discard(digest)

    @precondition(lambda self: self.listed)
    @rule(which=st.integers(0, 1), data=st.data())
    def unlist(self, which: int, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.listed)))
        names = self.stores[which].unlist(digest)
        assert set(names) == {name for name, each in self.names.items() if each == digest}
        self.names = {name: each for name, each in self.names.items() if each != digest}
        self.listed.discard(digest)

    @precondition(lambda self: self.listed)
    @rule(which=st.integers(0, 1), data=st.data())
    def pin(self, which: int, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.listed)))
        self.stores[which].pin(digest)
        self.pinned.append((self.stores[which], digest))

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        store, digest = self.pinned.pop(data.draw(st.integers(0, len(self.pinned) - 1)))
        store.unpin(digest)

    @rule(which=st.integers(0, 1))
    def remove(self, which: int) -> None:
        self.stores[which].remove_unreferenced()
        roots = self.listed | {digest for _, digest in self.pinned}
        needed = set().union(*(self.blobs_of[digest] for digest in roots))
        there = {f"sha256:{path.name}" for path in (self.directory / "s" / "blobs" / "sha256").iterdir()}
        assert there == needed

    @invariant()
    def both_see_the_model(self) -> None:
        for store in self.stores:
            listed = store.list()
            assert {each.name: each.digest for each in listed if each.name} == self.names
            assert {each.digest for each in listed} == self.listed
            assert len(listed) == len(self.names) + len(self.listed - set(self.names.values()))
            for digest in self.listed:
                assert store.artifact(digest).digest == digest

    def teardown(self) -> None:
        for each in self.stores:
            each.close()
        leftovers = list(self.stores[0].temp.directory.iterdir())
        shutil.rmtree(self.directory)
        assert not leftovers


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
