"""The one tree of errors that users see.

Every class has a stable ``code`` (what programs match on), a ``title`` (what went wrong, in general) and a
``remedy`` (what the reader can do about it); an instance adds ``detail`` (what went wrong, here) and ``fields``
(figures and names, for programs). The HTTP status of a class is decided in ``ovms_supervisor.api.problem``, its exit
code in ``ovms_supervisor.cli.exit_codes``, and nowhere else.

::

    OvmsError
    ├── InvalidInput            what the caller wrote cannot be meant
    │   ├── InvalidReference, InvalidDigest, InvalidSize, InvalidManifest, InvalidRequest, InvalidConfig, InvalidKey
    │   └── OutOfRange          an offset or length outside a device
    ├── Unsupported             well-formed, but outside v0.1 or this host
    │   ├── UnsupportedManifest, IncompatibleSnapshot, ImmutableOverride
    ├── NotFound                ArtifactNotFound, BlobNotFound, InstanceNotFound, DeviceNotFound, FileMissing
    ├── Conflict                the thing exists, but not in a state that allows this
    │   ├── NameInUse, WrongState, Busy, InUse, DaemonRunning
    ├── Corrupt                 bytes that are not what they claim to be
    │   ├── DigestMismatch, SizeMismatch, CorruptRamsnap, CorruptStore, UnsafeArchive, UnsafeDisk,
    │   │   InvalidSignature
    ├── Denied                  PermissionMissing, NotPermitted, NotAuthenticated, PolicyRejected, InvalidPolicy,
    │   │   NotVerified
    ├── HostLimit               the host lacks something
    │   ├── NoSpace, MlockLimit, IsolationMissing, NoUsableRuntime, MissingTool, CapacityExceeded,
    │   │   Overloaded
    ├── VmmFailure              the VMM process misbehaved
    │   ├── VmmExited, VmmTimeout, VmmRefused, VmmGarbage, MemoryNotShared
    ├── RegistryError           a registry, or the way to it, failed
    │   ├── RegistryUnreachable, RegistryRefused, RegistryGarbage, AuthenticationFailed, RateLimited
    ├── DaemonUnreachable       no daemon answers on the socket
    └── InternalError           a bug of ours
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class OvmsError(Exception):
    """Root of the tree: ``str(error)`` is the detail, one sentence for a person."""

    code: ClassVar[str] = "ovms.error"
    title: ClassVar[str] = "OVMS error"
    default_remedy: ClassVar[str] = ""

    def __init__(self, detail: str, *, remedy: str | None = None, **fields: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = self.default_remedy if remedy is None else remedy
        self.fields = fields


# --- what the caller wrote -------------------------------------------------------------------------------------


class InvalidInput(OvmsError):
    """What the caller wrote cannot be meant."""

    code = "input.invalid"
    title = "Invalid input"


class InvalidReference(InvalidInput):
    """A string that names no artifact."""

    code = "reference.invalid"
    title = "Invalid reference"
    default_remedy = "Write NAME[:TAG], HOST[:PORT]/NAME[:TAG], either with @sha256:…, or a path to a directory or tar."


class InvalidDigest(InvalidInput):
    """A string that is not ``sha256:`` and 64 lower-case hex digits."""

    code = "digest.invalid"
    title = "Invalid digest"
    default_remedy = "A digest is 'sha256:' followed by 64 lower-case hex digits."


class InvalidSize(InvalidInput):
    """A size that is not a number of bytes with an optional binary suffix."""

    code = "size.invalid"
    title = "Invalid size"
    default_remedy = "Write a whole number with an optional suffix K, M, G or T (powers of 1024), for example 512M."


class InvalidManifest(InvalidInput):
    """manifest.json breaks the schema; ``fields['path']`` is the JSON path of the offending value."""

    code = "manifest.invalid"
    title = "Invalid manifest"
    default_remedy = "Compare the manifest with spec/ovms-manifest.schema.json."


class InvalidRequest(InvalidInput):
    """An API body or query that breaks the OpenAPI document."""

    code = "request.invalid"
    title = "Invalid request"
    default_remedy = "Compare the request with GET /openapi.yaml."


class InvalidConfig(InvalidInput):
    """A configuration value that is unknown or malformed."""

    code = "config.invalid"
    title = "Invalid configuration"
    default_remedy = "Run 'ovm config' to see every key, its value and where the value comes from."


class InvalidKey(InvalidInput):
    """A key file that is none, is under another password, or is of a kind that is not supported."""

    code = "key.invalid"
    title = "Invalid key"
    default_remedy = (
        "Keys are ECDSA on P-256 in PEM, as 'ovm generate-key-pair' and 'cosign generate-key-pair' make them."
    )


class OutOfRange(InvalidInput):
    """An offset or length outside a device."""

    code = "device.out_of_range"
    title = "Outside the device"
    default_remedy = "Keep offset + length within the size of the device."


# --- outside v0.1 or this host ---------------------------------------------------------------------------------


class Unsupported(OvmsError):
    """Well-formed, but outside v0.1 or this host."""

    code = "unsupported"
    title = "Not supported"


class UnsupportedManifest(Unsupported):
    """A manifest that asks for what OVMS v0.1 excludes (RFC §9); ``fields['path']`` tells where."""

    code = "manifest.unsupported"
    title = "Outside OVMS v0.1"
    default_remedy = "OVMS v0.1 is Linux x86_64, BIOS boot, without GPU passthrough (RFC §9)."


class IncompatibleSnapshot(Unsupported):
    """A RAM snapshot that this VMM, version or CPU cannot continue; the detail names both sides."""

    code = "snapshot.incompatible"
    title = "Incompatible RAM snapshot"
    default_remedy = "Start it on the runtime it was made with, or boot cold with overrides.boot=cold (ovm run --cold)."


class ImmutableOverride(Unsupported):
    """An override of something that a restored machine cannot change."""

    code = "override.immutable"
    title = "Cannot be changed on restore"
    default_remedy = "Leave the override out, or boot cold (ovm run --cold)."


# --- not there ---------------------------------------------------------------------------------------------------


class NotFound(OvmsError):
    """Nothing has that name."""

    code = "not_found"
    title = "Not found"


class ArtifactNotFound(NotFound):
    """The local store holds no artifact of that reference."""

    code = "artifact.not_found"
    title = "No such artifact"
    default_remedy = "Run 'ovm ls' to see what is here."


class BlobNotFound(NotFound):
    """A manifest refers to a blob that the store does not hold."""

    code = "blob.not_found"
    title = "No such blob"
    default_remedy = "Import or pack the artifact again."


class InstanceNotFound(NotFound):
    """No instance has that id or name."""

    code = "instance.not_found"
    title = "No such instance"
    default_remedy = "Run 'ovm ps --all' to see all instances."


class DeviceNotFound(NotFound):
    """The instance has no device of that name."""

    code = "device.not_found"
    title = "No such device"
    default_remedy = "Run 'ovm status ID' to see the devices of the instance."


class FileMissing(NotFound):
    """A file or directory that the caller named is not there."""

    code = "file.not_found"
    title = "No such file"


# --- wrong moment ------------------------------------------------------------------------------------------------


class Conflict(OvmsError):
    """The thing exists, but not in a state that allows this."""

    code = "conflict"
    title = "Conflict"


class NameInUse(Conflict):
    """Another instance has that name."""

    code = "name.in_use"
    title = "Name in use"
    default_remedy = "Choose another name, or remove the instance that has it."


class WrongState(Conflict):
    """The instance's state does not allow the call; ``fields['status']`` has it."""

    code = "instance.wrong_state"
    title = "Wrong state"


class Busy(Conflict):
    """Something under way has to end first; ``fields['doing']`` names it."""

    code = "instance.busy"
    title = "Busy"
    default_remedy = "Try again when what is under way has ended (ovm events shows it)."


class InUse(Conflict):
    """Something still refers to it."""

    code = "in_use"
    title = "In use"


class DaemonRunning(Conflict):
    """Another daemon serves this root or run directory."""

    code = "daemon.running"
    title = "Another daemon is running"
    default_remedy = "Use that daemon, stop it first, or choose another --root and --run-dir."


# --- bytes that lie ----------------------------------------------------------------------------------------------


class Corrupt(OvmsError):
    """Bytes that are not what they claim to be."""

    code = "corrupt"
    title = "Corrupt data"


class DigestMismatch(Corrupt):
    """Content does not hash to its digest."""

    code = "digest.mismatch"
    title = "Digest mismatch"
    default_remedy = "The data was changed or damaged; fetch, import or pack it again."


class SizeMismatch(Corrupt):
    """Content is longer or shorter than its descriptor says."""

    code = "size.mismatch"
    title = "Size mismatch"
    default_remedy = "The data was changed or damaged; fetch, import or pack it again."


class CorruptRamsnap(Corrupt):
    """A ramsnap blob breaks its format (spec/ramsnap.md)."""

    code = "ramsnap.corrupt"
    title = "Corrupt RAM snapshot"
    default_remedy = "The data was changed or damaged; fetch, import or take the snapshot again."


class CorruptStore(Corrupt):
    """The local store's own files break the OCI image layout."""

    code = "store.corrupt"
    title = "Corrupt store"


class UnsafeArchive(Corrupt):
    """A tar with links, devices or paths that leave it."""

    code = "archive.unsafe"
    title = "Unsafe archive"
    default_remedy = "Only plain files and directories with relative paths are accepted."


class UnsafeDisk(Corrupt):
    """A disk image that points outside its layers or uses a feature we do not accept."""

    code = "disk.unsafe"
    title = "Unsafe disk image"
    default_remedy = "A diff layer must be a qcow2 whose backing file is the layer below, without external data file."


class InvalidSignature(Corrupt):
    """A signature that is none, or not of what it is attached to."""

    code = "signature.invalid"
    title = "Invalid signature"


# --- not allowed -------------------------------------------------------------------------------------------------


class Denied(OvmsError):
    """Refused by policy or permission."""

    code = "denied"
    title = "Denied"


class PermissionMissing(Denied):
    """The operating system denies it to this user."""

    code = "permission.missing"
    title = "Permission denied"


class NotPermitted(Denied):
    """The role of the caller does not allow it."""

    code = "role.not_permitted"
    title = "Not permitted"
    default_remedy = "Ask who runs the daemon to name you in roles.operators."


class NotAuthenticated(Denied):
    """A caller from elsewhere that has not shown who it is."""

    code = "caller.not_authenticated"
    title = "Not authenticated"
    default_remedy = "Give the token of the daemon (Authorization: Bearer …), or a client certificate that it accepts."


class PolicyRejected(Denied):
    """The operator's policy does not admit it; the fields have ``scope``, ``rule`` and what each signature lacked."""

    code = "policy.rejected"
    title = "Rejected by the policy"
    default_remedy = "Run 'ovm policy check REF' to see which rule decided and why."


class InvalidPolicy(Denied):
    """The policy file, or a key that it names, can't be used: nothing is admitted until it can."""

    code = "policy.invalid"
    title = "Unusable policy"
    default_remedy = "Mend the policy file (spec/policy.md), and see with 'ovm policy check REF' whether it is read."


class NotVerified(Denied):
    """No signature of an artifact verifies with the key that was given; ``fields['rejected']`` tells of each."""

    code = "signature.not_verified"
    title = "Not verified"
    default_remedy = "Sign it with 'ovm sign --key KEY REF', or give the key that it was signed with."


# --- the host ------------------------------------------------------------------------------------------------------


class HostLimit(OvmsError):
    """The host lacks something."""

    code = "host.limit"
    title = "Host limit"
    default_remedy = "Run 'ovm doctor' to see what this host can do."


class NoSpace(HostLimit):
    """A file system is full."""

    code = "host.no_space"
    title = "No space left"
    default_remedy = "Free space there, or move --root or --run-dir to a larger file system."


class MlockLimit(HostLimit):
    """Memory that must be locked cannot be."""

    code = "host.mlock_limit"
    title = "Memory cannot be locked"
    default_remedy = 'Raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity), or set mlock = "best-effort" in the configuration.'


class IsolationMissing(HostLimit):
    """A VMM cannot be confined as the configuration demands."""

    code = "host.isolation_missing"
    title = "Isolation cannot be had"
    default_remedy = (
        "Run 'ovm doctor' to see which layers this host has, or set isolation = \"auto\" in the configuration."
    )


class NoUsableRuntime(HostLimit):
    """No VMM on this host can run the artifact."""

    code = "runtime.none_usable"
    title = "No usable runtime"
    default_remedy = "Run 'ovm doctor' to see what each runtime lacks."


class MissingTool(HostLimit):
    """A program that is needed is not installed."""

    code = "host.missing_tool"
    title = "Program not installed"


class CapacityExceeded(HostLimit):
    """Admitting it would overcommit the host; the fields have the figures."""

    code = "host.capacity"
    title = "Not enough capacity"
    default_remedy = "Stop instances, or raise the budget in the configuration."


class Overloaded(HostLimit):
    """The daemon has so much to do that it takes on no more at the moment."""

    code = "daemon.overloaded"
    title = "Too much at once"
    default_remedy = "Ask again in a few seconds, and for less at once."


# --- the VMM -------------------------------------------------------------------------------------------------------


class VmmFailure(OvmsError):
    """The VMM process misbehaved."""

    code = "vmm.failure"
    title = "VMM failure"
    default_remedy = "See the instance's vmm.log and console (ovm logs ID)."


class VmmExited(VmmFailure):
    """The VMM process ended when it should not have."""

    code = "vmm.exited"
    title = "VMM exited"


class VmmTimeout(VmmFailure):
    """The VMM did not answer in time."""

    code = "vmm.timeout"
    title = "VMM does not answer"


class VmmRefused(VmmFailure):
    """The VMM answered with an error."""

    code = "vmm.refused"
    title = "VMM refused"


class VmmGarbage(VmmFailure):
    """The VMM answered with something that is not its protocol."""

    code = "vmm.garbage"
    title = "VMM answered garbage"


class MemoryNotShared(VmmFailure):
    """A restore turned out to have copied guest RAM instead of mapping the image privately."""

    code = "vmm.memory_not_shared"
    title = "Guest memory is not shared"


# --- registries ----------------------------------------------------------------------------------------------------


class RegistryError(OvmsError):
    """A registry, or the way to it, failed; ``fields['host']`` names it."""

    code = "registry.error"
    title = "Registry failure"


class RegistryUnreachable(RegistryError):
    """No connection to the registry, or none that lasted."""

    code = "registry.unreachable"
    title = "Registry unreachable"
    default_remedy = "Check the host name, the network, the proxy variables and, for TLS, the certificate authority."


class RegistryRefused(RegistryError):
    """The registry answered with an error; ``fields['status']`` is its HTTP status."""

    code = "registry.refused"
    title = "Registry refused"


class RegistryGarbage(RegistryError):
    """The registry answered with what is not its protocol, or would lead us where it must not."""

    code = "registry.garbage"
    title = "Registry answered garbage"


class AuthenticationFailed(RegistryError):
    """The registry wants credentials that we don't have, or denies those that we have."""

    code = "registry.authentication"
    title = "Not authorised at the registry"
    default_remedy = "Log in to the registry (ovm login HOST), and check the name of the repository."


class RateLimited(RegistryError):
    """The registry asks to come back later than we are willing to wait; ``fields['retry_after_s']`` if it said when."""

    code = "registry.rate_limited"
    title = "Rate limit of the registry"
    default_remedy = "Try again later, or log in: registries allow more to whom they know."


# --- ours ----------------------------------------------------------------------------------------------------------


class DaemonUnreachable(OvmsError):
    """No daemon answers on the socket."""

    code = "daemon.unreachable"
    title = "No daemon"
    default_remedy = "Start one with 'ovm serve', or name its socket with --socket or OVMS_SOCKET."


class InternalError(OvmsError):
    """A bug of ours."""

    code = "internal"
    title = "Internal error"
    default_remedy = "Please report it with the daemon's log."


def error_classes(root: type[OvmsError] = OvmsError) -> Iterator[type[OvmsError]]:
    """Every class of the tree, parents before children."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def class_for_code(code: str) -> type[OvmsError]:
    """The class that has this stable code, or the root for a code we do not know (a newer daemon)."""
    return next((cls for cls in error_classes() if cls.code == code), OvmsError)
