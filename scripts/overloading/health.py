"""Asks for ``/healthz`` all the time, from a process of its own: ``python -m scripts.overloading.health SOCKET``.

Prints, for each line that it reads, how it went since the line before: as JSON, latencies in milliseconds.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

_EVERY_S = 0.02
_PATIENCE_S = 10.0
_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: ovms\r\nConnection: close\r\n\r\n"


def ask(path: str) -> bool:
    """One request on a connection of its own; whether it was answered well."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_PATIENCE_S)
        try:
            client.connect(path)
            client.sendall(_REQUEST)
            return client.recv(4096).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def main(path: str) -> None:
    latencies_ms: list[float] = []
    failed = 0
    while True:
        began = time.monotonic()
        if ask(path):
            latencies_ms.append((time.monotonic() - began) * 1000)
        else:
            failed += 1
        if select.select([sys.stdin], [], [], _EVERY_S)[0]:
            if not sys.stdin.readline():
                return
            ordered = sorted(latencies_ms) or [0.0]
            p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
            said = {"asked": len(latencies_ms) + failed, "failed": failed, "p50": p50, "p99": p99, "max": ordered[-1]}
            print(json.dumps(said), flush=True)
            latencies_ms, failed = [], 0


if __name__ == "__main__":
    main(sys.argv[1])
