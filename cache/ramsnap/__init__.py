"""The codec of RAM snapshots: ``application/vnd.ovms.ramsnap.v1+lz4``, documented in spec/ramsnap.md."""

from cache.ramsnap.chain import BlobPath, Chain, read_chain
from cache.ramsnap.decoder import RamsnapDecoder, decode
from cache.ramsnap.encoder import Changes, EncodedRamsnap, encode
from cache.ramsnap.head import read_header, read_index
from cache.ramsnap.image_copy import copy_image

__all__ = [
    "BlobPath",
    "Chain",
    "Changes",
    "EncodedRamsnap",
    "RamsnapDecoder",
    "copy_image",
    "decode",
    "encode",
    "read_chain",
    "read_header",
    "read_index",
]
