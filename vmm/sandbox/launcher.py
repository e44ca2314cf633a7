"""The launcher: a small process of one thread that makes confined processes for the daemon.

The daemon itself can't: a fork of it would copy the page tables of a large process of many threads, and posix_spawn
knows no namespaces. The launcher forks in a fraction of a millisecond, and ``CLONE_PARENT`` makes what it forks the
daemon's own children. Run as a program, with the number of the socket to the daemon and the names of the namespaces
that all its VMMs shall share; it ends with that socket.

Standard library only, and as little of it as can be: its pages are what every fork has to copy.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys


def main() -> None:
    """Serve orders until the daemon is gone."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the daemon's to handle
    orders = socket.socket(fileno=int(sys.argv[1]))
    orders.set_inheritable(False)
    from vmm.sandbox import kernel
    from vmm.sandbox.orders import Order, receive

    for name in sys.argv[2:]:
        kernel.unshare(kernel.NAMESPACES[name])
    gc.freeze()
    while True:
        message, fds = receive(orders, 64)
        if not message:
            return
        go: list[int] = []
        try:
            reply, passed = _launch(Order.decode(message), fds, go)
        except (OSError, ValueError, TypeError, LookupError) as error:
            reply, passed = {"error": f"{type(error).__name__}: {error}"}, []
        try:
            socket.send_fds(orders, [json.dumps(reply).encode()], passed)
            for fd in go:
                os.write(fd, b"!")
        except OSError:
            return
        finally:
            for fd in (*fds, *passed, *go):
                os.close(fd)


def _launch(order: object, fds: list[int], go: list[int]) -> tuple[dict[str, object], list[int]]:
    """A child that executes the program when something is written to what is put into ``go``, and else ends.

    That is written when the daemon has been told of the child: if one of us is killed before, nothing is left that runs
    and that nobody knows.
    """
    from vmm.sandbox import child, kernel
    from vmm.sandbox.orders import Order

    assert isinstance(order, Order)  # noqa: S101 - a type for the checker; imported late to keep the program small
    if len(fds) != 3 + len(order.fds):
        raise ValueError(f"{len(fds)} descriptors came with an order that needs {3 + len(order.fds)}")
    flags = kernel.CLONE_PARENT
    for name in order.namespaces:
        flags |= kernel.NAMESPACES[name]
    told, pipe = os.pipe()
    wait, signal_go = os.pipe()
    pid, pidfd = kernel.clone(flags)
    if pid == 0:
        failure = 127
        os.close(signal_go)
        try:
            remarks = child.become(order, fds, pipe, wait)
            if remarks:
                os.write(pipe, json.dumps({"remarks": remarks}).encode() + b"\n")
            os.execve(order.argv[0], order.argv, order.environment)
        except BaseException as error:  # whatever it is: this process must not go on as a second launcher
            number = getattr(error, "errno", None)
            os.write(pipe, json.dumps({"failed": str(error), "errno": number}).encode() + b"\n")
        finally:
            os._exit(failure)
    os.close(pipe)
    os.close(wait)
    go.append(signal_go)
    return {"pid": pid}, [pidfd, told]


if __name__ == "__main__":
    main()
