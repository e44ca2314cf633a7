"""The daemon: its parts put together, in the order in which they need each other, and taken apart in the reverse."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import structlog

from cache.resident import ResidentImages
from cache.store import Store
from ovms_supervisor.api.context import Context
from ovms_supervisor.api.limits import Limits
from ovms_supervisor.api.listen import activated, listen, remove_socket
from ovms_supervisor.api.remote import listen_remotely
from ovms_supervisor.api.roles import Roles
from ovms_supervisor.api.serving import serve
from ovms_supervisor.config import Settings
from ovms_supervisor.config.directories import secure_directory
from ovms_supervisor.directory_lock import locked
from ovms_supervisor.event_loop import loop_factory
from ovms_supervisor.garbage_collection import FrozenSurvivors
from ovms_supervisor.image_mount import IMAGES_LOCK, mount_images, unmount_images
from ovms_supervisor.layout import Layout
from ovms_supervisor.log_file import LogFile
from ovms_supervisor.log_setup import logging_to
from ovms_supervisor.loop_lag import LoopLag
from ovms_supervisor.metrics import Metrics
from ovms_supervisor.sd_notify import sd_notify
from ovms_supervisor.startup import Startup
from ovms_supervisor.supervisor import Supervisor
from ovms_supervisor.version import VERSION
from ovms_supervisor.watchdog import Watchdog
from vmm.priority import put_first
from vmm.registry import drivers
from vmm.sandbox.launching import Launcher

_HANDLERS_S = 5.0  # what handlers get to send their last replies in, after changes under way have been drained

_MOST_DESCRIPTORS = Path("/proc/sys/fs/nr_open")

_log = structlog.get_logger(__name__)


def run_daemon(settings: Settings, log_file: LogFile | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises OvmsError if it cannot begin (DaemonRunning, InvalidConfig, …).

    ``log_file`` is what stdout and stderr are, if the daemon is to keep that within bounds.
    """
    _raise_descriptor_limit()
    put_first(settings.nice)
    with (
        logging_to(settings.log_format, settings.log_level, file=log_file),
        asyncio.Runner(loop_factory=loop_factory(settings.event_loop)) as runner,
    ):
        runner.run(_serve_until_told(settings))


async def _serve_until_told(settings: Settings) -> None:
    told: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

    def tell(number: signal.Signals) -> None:
        if not told.done():
            told.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, tell, number)
    async with Watchdog(), serving(settings), AsyncExitStack() as stack:
        stack.enter_context(FrozenSurvivors())  # now that everything is loaded, and machines have been taken over
        sd_notify("READY=1", f"STATUS=listens on {settings.socket}")
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        _log.info("ready", version=VERSION, socket=str(settings.socket), pid=os.getpid(), event_loop=loop)
        number = await told
        sd_notify("STOPPING=1")
        _log.info("stopping", signal=number.name, on_exit=settings.on_exit)
    _log.info("stopped")


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Supervisor]:
    """A daemon for as long as the context lasts, without signals and service manager."""
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(_prepare, settings)
        roles = Roles.of(settings.operators, settings.readers)
        # Socket and locks first: who finds another daemon there must not touch anything of that one's.
        listening = await _listen(settings, stack)
        remote = None
        if settings.listen is not None:
            remote = await asyncio.to_thread(listen_remotely, settings.listen)
            stack.callback(remote.listening.close)
        if settings.huge_pages:
            stack.push_async_callback(asyncio.to_thread, unmount_images, settings.image_dir)  # after the locks in it
        locks = (*Layout.of(settings).locks, settings.image_dir / IMAGES_LOCK)
        held = stack.enter_context(await asyncio.to_thread(_locked, locks))
        standing = await asyncio.to_thread(mount_images, settings.image_dir, held) if settings.huge_pages else []
        lag = await stack.enter_async_context(LoopLag())
        store = Store(settings.root)
        await asyncio.to_thread(store.create)
        images = ResidentImages(
            settings.image_dir,
            mlock=settings.mlock,
            budget_bytes=settings.image_budget_bytes,
            blob_path=store.blob_path,
            standing=standing,
        )
        await images.open()
        stack.push_async_callback(images.close)
        launcher = Launcher(settings.run_dir / "launcher.log")
        stack.push_async_callback(launcher.close)
        supervisor = await stack.enter_async_context(
            Supervisor(
                settings,
                drivers(settings.binaries, launcher),
                store,
                images,
                launcher=launcher,
                progress=Startup().taken_over,
            )
        )
        metrics = Metrics(lag, images)
        metrics.registry.register(supervisor.pool.figures)
        counting = asyncio.create_task(metrics.count_starts(supervisor), name="count-starts")
        stack.callback(counting.cancel)
        context = Context(
            supervisor=supervisor,
            metrics=metrics,
            lag=lag,
            roles=roles,
            remote=remote,
            limits=Limits(connections=settings.max_connections),
        )
        await serve(context, listening, stack, last_s=_HANDLERS_S)
        yield supervisor


def _prepare(settings: Settings) -> None:
    """Our directories, which others can't get at; the run directory may be passed through if a group has the socket."""
    secure_directory(settings.run_dir, 0o711 if settings.socket_group else 0o700)
    secure_directory(settings.image_dir)


def _locked(paths: tuple[Path, ...]) -> ExitStack:
    with ExitStack() as stack:
        stack.enter_context(locked(paths))
        return stack.pop_all()


async def _listen(settings: Settings, stack: AsyncExitStack) -> socket.socket:
    given = activated(os.environ)
    if given is not None:
        stack.callback(given.close)
        return given
    listening = await asyncio.to_thread(listen, settings.socket, settings.socket_group)
    stack.push_async_callback(asyncio.to_thread, remove_socket, settings.socket)
    stack.callback(listening.close)
    return listening


def _raise_descriptor_limit() -> None:
    """Each machine costs some descriptors; the usual soft limit of 1024 is there for select(2), which we don't use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard
    with suppress(OSError, ValueError):
        most = max(hard, int(_MOST_DESCRIPTORS.read_text()))  # which root may have without asking anybody
    for wish in (most, hard):
        with suppress(OSError, ValueError):
            if soft < wish:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wish, max(wish, hard)))
            return
