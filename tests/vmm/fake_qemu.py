"""Answers like QEMU; what the file 'faults' beside it says about a command (or 'greeting'), it does instead."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 0, "minor": 0, "micro": 1}, "package": ""}, "capabilities": ["oob"]}}
ANSWERS: dict[str, Any] = {
    "query-status": {"running": True, "status": "running"},
    "human-monitor-command": "CR0=80000011",
    "query-block": [],
}


def misbehave(fault: object, connection: socket.socket, command: str) -> bool:
    match fault:
        case None:
            return False
        case "hang":
            time.sleep(60)
        case "exit":
            sys.exit(f"died in {command}")
        case "hang up":
            connection.shutdown(socket.SHUT_RDWR)
        case str(raw):
            with suppress(BrokenPipeError):
                connection.sendall(raw.encode("latin-1"))
    return True


def requests(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON objects with nothing, or a space that carries a descriptor, between them."""
    text = ""
    while data := connection.recv(65536):
        text += data.decode()
        while text := text.lstrip():
            try:
                request, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:]
            yield request


def serve(faults: dict[str, Any], fd: int) -> None:
    listener = socket.socket(fileno=fd)
    connection, _ = listener.accept()
    if misbehave(faults.get("greeting"), connection, "greeting"):
        time.sleep(60)
    connection.sendall(json.dumps(GREETING).encode() + b"\r\n")
    for request in requests(connection):
        command = request["execute"]
        if misbehave(faults.get(command), connection, command):
            continue
        answers = {**ANSWERS, **faults.get("answers", {})}
        reply = {"return": answers.get(command, {}), **{key: request[key] for key in request if key == "id"}}
        connection.sendall(json.dumps(reply).encode() + b"\r\n")
        if command == "migrate-incoming":
            event = {"event": "MIGRATION", "data": {"status": faults.get("incoming", "completed")}}
            connection.sendall(json.dumps(event).encode() + b"\r\n")
        if command == "quit":
            return
    time.sleep(60)  # the other side has had enough


if "--version" in sys.argv:
    print(os.environ.get("TZ") or "QEMU emulator version 9.0.1 (fake)")
elif "help" in sys.argv:
    print("q35   Standard PC (alias of pc-q35-9.0)" if os.environ.get("LANG") != "no-q35" else "none   nothing")
else:
    knobs = json.loads(Path(sys.argv[0]).with_name("faults").read_text())
    if knobs.get("start") == "exit":
        sys.exit("no emulator here")
    if knobs.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(knobs, next(int(arg.split("fd=")[1].split(",")[0]) for arg in sys.argv if arg.startswith("socket,id=qmp")))
