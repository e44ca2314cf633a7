"""What the words of OVMS mean: manifests, digests, references, states, API shapes, errors. No I/O."""
