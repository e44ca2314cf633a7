"""Artifacts at rest and in memory: OCI layout store, disk layers, ramsnap codec, resident images."""
