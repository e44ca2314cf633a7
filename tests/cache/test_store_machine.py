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
from cache.prune import free, prune, shrink
from cache.store import Store
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import ArtifactNotFound
from spec.manifest import decode_manifest
from spec.oci import Descriptor

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
        self.claimed: dict[str, Digest] = {}
        self.subjects: dict[Digest, Digest] = {}
        """Signatures, by their digest."""
        self.used: list[Digest] = []
        """Artifacts, the least recently used first."""

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
        self.used = [*(each for each in self.used if each != digest), digest]
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

    @precondition(lambda self: self.listed)
    @rule(which=st.integers(0, 1), data=st.data())
    def claim(self, which: int, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.listed)))
        owner = f"owner-{data.draw(st.integers(0, 2))}"
        (self.directory / owner).touch()
        self.stores[which].claim(owner, self.directory / owner, [digest])
        self.claimed[owner] = digest

    @precondition(lambda self: self.claimed)
    @rule(which=st.integers(0, 1), data=st.data())
    def end_claim(self, which: int, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.claimed)))
        if data.draw(st.booleans()):
            self.stores[which].disclaim(owner)
        else:
            (self.directory / owner).unlink()
        del self.claimed[owner]

    @precondition(lambda self: self.listed)
    @rule(which=st.integers(0, 1), data=st.data())
    def use(self, which: int, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.listed)))
        self.stores[which].note_use(digest)
        self.used = [*(each for each in self.used if each != digest), digest]

    @precondition(lambda self: self.listed)
    @rule(which=st.integers(0, 1), data=st.data(), by_tag=st.booleans())
    def sign(self, which: int, data: st.DataObject, by_tag: bool) -> None:
        """A referrer of an artifact, or of another referrer, by its subject or by Cosign's kind of name."""
        store = self.stores[which]
        subject = data.draw(st.sampled_from(sorted(self.listed | self.subjects.keys())))
        document = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "artifactType": "application/vnd.example.signature",
            "config": {"mediaType": media_types.OCI_EMPTY, "digest": digest_of(b"{}"), "size": 2},
        }
        if not by_tag:
            document["subject"] = {"mediaType": media_types.OCI_MANIFEST, "digest": subject, "size": 1}
        name = f"a:{subject.replace(':', '-')}.sig" if by_tag else None
        with store.adding() as added:
            signature = store.put_bytes(b"signature of " + subject.encode())
            added += signature, store.put_bytes(b"{}")
            document["layers"] = [{"mediaType": "application/octet-stream", "digest": signature, "size": 84}]
            written = json.dumps(document).encode()
            digest = digest_of(written)
            assert store.put_referrer(written, Descriptor(media_types.OCI_MANIFEST, digest, len(written)), name)
        self.blobs_of[digest] = {digest, signature, digest_of(b"{}")}
        self.subjects[digest] = subject

    @rule(which=st.integers(0, 1), variant=VARIANTS)
    def interrupt_a_pull(self, which: int, variant: int) -> None:
        (self.stores[which].partial_dir / f"{variant:064x}").write_bytes(b"half")

    @rule(which=st.integers(0, 1))
    def remove(self, which: int) -> None:
        self.stores[which].remove_unreferenced()
        assert self.there() == self.needed(self.listed | self.held() | self.subjects.keys())

    @rule(which=st.integers(0, 1), everything=st.booleans(), dry_run=st.booleans())
    def prune(self, which: int, everything: bool, dry_run: bool) -> None:
        before, known = self.there(), self.needed(self.listed | self.held() | self.subjects.keys())
        pulls = {path.name for path in self.stores[0].partial_dir.iterdir()}
        removed = {each.what for each in prune(self.stores[which], everything=everything, dry_run=dry_run)}
        kept = (self.listed & set(self.names.values())) | (self.listed & self.needed(self.held()))
        needed = self.needed(kept | self.held())
        expected = before & needed
        if pulls and not everything:
            expected |= before - known
        assert {each for each in removed if each.startswith("sha256:")} == before - expected
        assert {each for each in removed if not each.startswith("sha256:")} == {
            f"partial/{name}" for name in pulls if everything
        }
        if dry_run:
            assert self.there() == before
            return
        assert self.there() == expected
        self.listed = kept
        self.subjects = {each: subject for each, subject in self.subjects.items() if each in needed}

    @rule(which=st.integers(0, 1), share=st.floats(0, 1.2))
    def shrink(self, which: int, share: float) -> None:
        store = self.stores[which]
        limit_bytes = int(store.size_bytes() * share)
        shrink(store, limit_bytes)
        left = {each.digest for each in store.list()} & self.listed
        held = self.needed(self.held())
        may_go = [each for each in self.used if each in self.listed - held - set(self.names.values())]
        gone = self.listed - left
        assert gone == set(may_go[: len(gone)]), "the least recently used go first, and nothing that is needed"
        self.listed = left
        needed = self.needed(self.listed | self.held())
        with store.collecting() as parts:
            signatures = {each.digest for each in parts.index.listed()} & self.subjects.keys()
        assert self.subjects.keys() - signatures <= self.subjects.keys() - needed
        self.subjects = {each: subject for each, subject in self.subjects.items() if each in signatures}
        if gone != set(may_go):
            assert store.size_bytes() <= max(limit_bytes, 0)

    @precondition(lambda self: self.names)
    @rule(which=st.integers(0, 1), data=st.data())
    def remove_by_name(self, which: int, data: st.DataObject) -> None:
        """What ``ovm rmi`` does."""
        name = data.draw(st.sampled_from(sorted(self.names)))
        before = self.there()
        digest = self.stores[which].untag(name)
        free(self.stores[which], [digest])
        del self.names[name]
        if digest not in self.names.values():
            self.listed.discard(digest)
        needed = self.needed(self.listed | self.held())
        about = {digest}
        while found := {each for each, subject in self.subjects.items() if subject in about} - about:
            about |= found
        gone = set() if digest in needed else {each for each in about & self.subjects.keys() if each not in needed}
        kept = self.needed(self.listed | self.held() | (self.subjects.keys() - gone))
        lost = (
            set() if digest in needed else set().union(self.blobs_of[digest], *(self.blobs_of[each] for each in gone))
        )
        assert self.there() == before - (lost - kept)
        self.subjects = {each: subject for each, subject in self.subjects.items() if each not in gone}

    def held(self) -> set[Digest]:
        return {digest for _, digest in self.pinned} | set(self.claimed.values())

    def needed(self, roots: set[Digest]) -> set[Digest]:
        """What the roots lead to, and the signatures of that, and theirs."""
        needed = set[Digest]().union(*(self.blobs_of[digest] for digest in roots))
        while found := [each for each, subject in self.subjects.items() if subject in needed and each not in needed]:
            needed = needed.union(*(self.blobs_of[each] for each in found))
        return needed

    def there(self) -> set[Digest]:
        return {Digest(f"sha256:{path.name}") for path in (self.directory / "s" / "blobs" / "sha256").iterdir()}

    @invariant()
    def both_see_the_model(self) -> None:
        for store in self.stores:
            listed = [each for each in store.list() if each.digest not in self.subjects]  # one may say it in its body
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
