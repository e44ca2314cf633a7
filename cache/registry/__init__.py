"""A client of OCI registries (distribution-spec v1.1) that believes nothing a registry says until it is checked."""
