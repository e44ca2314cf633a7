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
from collections.abc import Callable
from contextlib import suppress

if __name__ == "__main__":  # run by its path, isolated from whatever else there is
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from vmm.sandbox import child, kernel
from vmm.sandbox.orders import Order, receive


def main() -> None:
    """Serve orders until the daemon is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the daemon's to handle
    orders = socket.socket(fileno=int(sys.argv[1]))
    orders.set_inheritable(False)
    for name in sys.argv[2:]:
        kernel.unshare(kernel.NAMESPACES[name])
    gc.freeze()
    while True:
        message, fds = receive(orders, 64)
        if not message:
            return
        go: list[int] = []
        try:
            order = Order.decode(message)
            reply, passed = _launch(order, fds, go) if order.argv else _stand_by(order)
        except (OSError, ValueError, TypeError, LookupError) as error:
            reply, passed = {"error": f"{type(error).__name__}: {error}"}, []
        try:
            if not answer(orders, reply, passed, go):
                return
        finally:
            for fd in (*fds, *passed, *go):
                os.close(fd)


def answer(orders: socket.socket, reply: dict[str, object], passed: list[int], go: list[int]) -> bool:
    """Tell the daemon of a child, and then let the child go on; False if there is no daemon any more."""
    try:
        socket.send_fds(orders, [json.dumps(reply).encode()], passed)
    except OSError:
        return False
    for fd in go:
        with suppress(BrokenPipeError):  # it has failed already, or the daemon has ended it at once
            os.write(fd, b"!")
    return True


def _launch(order: Order, fds: list[int], go: list[int]) -> tuple[dict[str, object], list[int]]:
    """A child that executes the program when something is written to what is put into ``go``, and else ends.

    That is written when the daemon has been told of the child: if one of us is killed before, nothing is left that runs
    and that nobody knows.
    """
    _check(order, fds)
    wait, signal_go = os.pipe()

    def live(pipe: int) -> None:
        os.close(signal_go)
        waiting = child.out_of_the_way(wait, [pipe, *fds, *order.fds])
        _execute(order, child.prepare(order), fds, pipe, lambda: bool(os.read(waiting, 1)))

    pid, pidfd, told = _clone(order, live)
    os.close(wait)
    go.append(signal_go)
    return {"pid": pid}, [pidfd, told]


def _stand_by(form: Order) -> tuple[dict[str, object], list[int]]:
    """A child that is prepared for orders of a form, and waits for one, or for the end of the daemon.

    The daemon, which knows of it already, holds its end of the socket until the program is executed: an order of a
    daemon that has been killed meanwhile is not carried out.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def live(pipe: int) -> None:
        ours.close()
        _close_all_but(its.fileno(), pipe)  # or the daemon would not notice the end of the launcher
        remarks = child.prepare(form)
        message, fds = receive(its, 64)
        if not message:
            os._exit(0)
        order = Order.decode(message)
        _check(order, fds)
        connection = socket.socket(fileno=child.out_of_the_way(its.fileno(), [pipe, *fds, *order.fds]))
        _execute(order, remarks, fds, pipe, lambda: _is_held(connection))

    with its:
        pid, pidfd, told = _clone(form, live)
    return {"pid": pid}, [pidfd, told, ours.detach()]


def _is_held(connection: socket.socket) -> bool:
    """Whether the other end of a connection on which nothing more is said is still open."""
    try:
        connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


def _close_all_but(*kept: int) -> None:
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, 1 << 20)


def _check(order: Order, fds: list[int]) -> None:
    if len(fds) != 3 + len(order.fds):
        raise ValueError(f"{len(fds)} descriptors came with an order that needs {3 + len(order.fds)}")


def _execute(order: Order, remarks: list[tuple[str, str]], fds: list[int], pipe: int, go: Callable[[], bool]) -> None:
    """Ends this process, by the exec or without it.

    ``go`` is asked last: by then the process has the log of its instance as standard error, by which a daemon finds it.
    """
    pipe = child.out_of_the_way(pipe, [*fds, *order.fds])
    try:
        remarks = child.become(order, remarks, fds)
        if not go():
            raise OSError(0, "the launcher or the daemon ended before the daemon knew of this process")
        if remarks:
            _tell(pipe, {"remarks": remarks})
        os.execve(order.argv[0], order.argv, order.environment)
    except BaseException as error:
        _tell(pipe, {"failed": str(error), "errno": getattr(error, "errno", None)})
        os._exit(127)


def _tell(pipe: int, what: dict[str, object]) -> None:
    os.write(pipe, json.dumps(what).encode() + b"\n")


def _clone(order: Order, live: Callable[[int], None]) -> tuple[int, int, int]:
    """A child in the namespaces of an order: its pid, pidfd, and where it tells what becomes of it, until its exec."""
    flags = kernel.CLONE_PARENT
    for name in order.namespaces:
        flags |= kernel.NAMESPACES[name]
    told, pipe = os.pipe()
    pid, pidfd = kernel.clone(flags)
    if pid == 0:
        try:
            live(pipe)
        except BaseException as error:  # whatever it is: this process must not go on as a second launcher
            _tell(pipe, {"failed": str(error), "errno": getattr(error, "errno", None)})
        finally:
            os._exit(127)
    os.close(pipe)
    return pid, pidfd, told


if __name__ == "__main__":
    main()
