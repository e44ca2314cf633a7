"""Whatever lies there and however the registry behaves: the blob is whole or it is not there, and nothing else is."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.registry.access import Access, open_registries
from cache.registry.download import Download, Downloads
from cache.registry.retry import RetryPolicy
from cache.store import Store
from spec.digest import digest_of
from spec.errors import OvmsError
from spec.oci import Descriptor
from spec.reference import parse_reference
from tests.cache.registry.small_registry import SmallRegistry, serving

DATA = bytes(range(256)) * 1200
QUICK = RetryPolicy(tries=3, first_s=0.001, longest_s=0.001)


@settings(max_examples=25)
@given(
    left=st.one_of(st.none(), st.integers(0, len(DATA)), st.binary(min_size=1, max_size=100)),
    cuts=st.lists(st.integers(0, len(DATA)), max_size=6),
    ranges=st.booleans(),
    refuses=st.booleans(),
    chunked=st.booleans(),
    content_range=st.sampled_from(["", f"bytes 0-{len(DATA) - 1}/{len(DATA)}"]),
    size=st.sampled_from([len(DATA), len(DATA) + 1]),
    honest=st.booleans(),
)
def test_any_history(
    left: int | bytes | None,
    cuts: list[int],
    ranges: bool,
    refuses: bool,
    chunked: bool,
    content_range: str,
    size: int,
    honest: bool,
) -> None:
    blob = Descriptor("x/y", digest_of(DATA), size)
    registry = SmallRegistry(ranges=ranges, refuses_ranges=refuses, chunked=chunked)
    registry.cuts.extend(cuts)
    registry.blobs[blob.digest] = DATA if honest else DATA[::-1]
    registry.headers = {"Content-Range": content_range} if content_range else {}
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory))
        store.create()
        partial = store.partial_dir / blob.digest[7:]
        if left is not None:
            partial.write_bytes(DATA[:left] if isinstance(left, int) else left)
        done = asyncio.run(_try(store, registry, blob))
        path = store.blob_path(blob.content_digest)
        if done:
            assert path.read_bytes() == DATA
            assert size == len(DATA)
            assert not partial.exists()
        else:
            assert not path.exists()
        assert {each.name for each in store.partial_dir.iterdir()} <= {partial.name}
        store.close()


async def _try(store: Store, registry: SmallRegistry, blob: Descriptor) -> bool:
    async with serving(registry), open_registries(Access(retry=QUICK)) as registries:
        repository = registries.repository(parse_reference(f"{registry.host}/app:1"))
        try:
            await Download(store, repository, blob, Downloads(retry=QUICK), lambda _: None).run()
        except OvmsError:
            return False
        return True
