"""The codec of RAM snapshots: ``application/vnd.ovms.ramsnap.v1+lz4``, documented in spec/ramsnap.md."""

from cache.ramsnap.decoder import RamsnapDecoder, decode, read_header, read_index
from cache.ramsnap.encoder import EncodedRamsnap, encode

__all__ = ["EncodedRamsnap", "RamsnapDecoder", "decode", "encode", "read_header", "read_index"]
