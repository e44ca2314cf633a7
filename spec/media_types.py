"""Media types and annotations (RFC §2, OCI image-spec v1.1)."""

from typing import Final

MANIFEST: Final = "application/vnd.ovms.manifest.v1+json"
"""Type of manifest.json and ``artifactType`` of the OCI manifest around it."""
RAMSNAP: Final = "application/vnd.ovms.ramsnap.v1+lz4"
KERNEL: Final = "application/vnd.ovms.kernel.v1"
INITRD: Final = "application/vnd.ovms.initrd.v1"

DISK_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DISK_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
DISK_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
DISK_LAYERS: Final = frozenset({DISK_LAYER, DISK_LAYER_GZIP, DISK_LAYER_ZSTD})

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
EMPTY_CONFIG: Final = b"{}"
"""The content of the empty descriptor (OCI image-spec v1.1, manifest.md §Guidance for an Empty Descriptor)."""

OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
"""The layer of a signature in the manner of Cosign v2 (simple signing)."""
SIGSTORE_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""The layer, and the ``artifactType``, of a signature or attestation in the manner of Cosign v3."""
IN_TOTO: Final = "application/vnd.in-toto+json"

ANNOTATION_DISK_FORMAT: Final = "ovms.format"
"""On a disk layer: qcow2 or raw (RFC §2)."""
ANNOTATION_RAMSNAP_HEADER: Final = "ovms.ramsnap.header-digest"
"""On a ramsnap layer: digest of the header frame, so that single frames can be verified before the whole is there."""
ANNOTATION_RUNTIME: Final = "ovms.runtime"
"""On an entry of an index: the runtime it is for (qemu, cloud-hypervisor); without it, any."""
ANNOTATION_CPU_CLASS: Final = "ovms.cpu-class"
"""On an entry of an index: the least CPU it runs on (x86-64-v1 to x86-64-v4); without it, any."""
ANNOTATION_TITLE: Final = "org.opencontainers.image.title"
ANNOTATION_REF_NAME: Final = "org.opencontainers.image.ref.name"
ANNOTATION_CREATED: Final = "org.opencontainers.image.created"
ANNOTATION_SUBJECT: Final = "ovms.subject"
"""In the index of a store, on a signature or the like: digest of the manifest that it is about."""
