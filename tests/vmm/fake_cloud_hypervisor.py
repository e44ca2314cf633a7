"""Answers like Cloud Hypervisor; what the file 'faults' beside it says about a command, it does instead."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path


def reply_of(status: str, body: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def answer(command: str, body: dict[str, str], faults: dict[str, dict[str, str]]) -> bytes:
    if command == "vm.snapshot":
        for name, text in faults.get("files", {}).items():
            (Path(body["destination_url"].removeprefix("file://")) / name).write_text(text)
    objects = {"vmm.ping": {"build_version": "v0.0-fake"}, "vm.info": {"state": "Running"}}
    return reply_of("200 OK", json.dumps(objects[command]) if command in objects else "")


def serve(faults: dict[str, object]) -> None:
    listener = socket.socket(fileno=int(sys.argv[2].removeprefix("fd=")))
    while True:
        connection, _ = listener.accept()
        with connection:
            request = connection.recv(65536).decode()
            command = request.split()[1].rpartition("/")[2]
            body = json.loads(request.partition("\r\n\r\n")[2] or "{}")
            match faults.get(command):
                case "hang":
                    time.sleep(60)
                case "exit":
                    sys.exit(f"died in {command}")
                case "hang up":
                    pass
                case str(raw):
                    connection.sendall(raw.encode())
                case _:
                    connection.sendall(answer(command, body, faults))  # type: ignore[arg-type]
                    if command == "vmm.shutdown":
                        return


if sys.argv[1] == "--version":
    print(os.environ.get("TZ") or "cloud-hypervisor v0.0-fake")
elif sys.argv[1] != "--help":
    knobs = json.loads(Path(sys.argv[0]).with_name("faults").read_text())
    if knobs.get("start") == "exit":
        sys.exit("no hypervisor here")
    if knobs.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(knobs)
