"""The codec of RAM snapshots: ``application/vnd.ovms.ramsnap.v1+lz4``, documented in spec/ramsnap.md."""

from cache.ramsnap.decoder import RamsnapDecoder, decode, read_header, read_index
from cache.ramsnap.encoder import Changes, EncodedRamsnap, encode

__all__ = ["Changes", "EncodedRamsnap", "RamsnapDecoder", "decode", "encode", "read_header", "read_index"]
