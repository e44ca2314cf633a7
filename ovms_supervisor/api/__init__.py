"""The runtime contract (RFC §4) over HTTP on a UNIX socket, as spec/api/ovms-runtime.openapi.yaml says it."""
