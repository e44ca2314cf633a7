"""The daemon's own log on stderr: JSON lines, or readable ones on a terminal. Standard logging goes the same way.

Lines are made and written by a thread: a traceback reads source files, and a stderr that nobody reads blocks.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from ovms_supervisor.config.settings import LogFormat, LogLevel
from ovms_supervisor.log_file import LogFile
from ovms_supervisor.terminal import neutral, neutral_line

_PAUSE_S = 0.02
_WAITING_LINES = 10_000  # then lines are lost rather than the daemon held up


class _Handover(QueueHandler):
    """Gives records to the thread as they are; the standard one would format them first."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return


class _Listener(QueueListener):
    """Lets a moment pass between two lines' coming and their writing.

    A start says three lines. Written at once, each would have the thread compete with the event loop for the
    interpreter in the middle of that start.
    """

    def __init__(self, waiting: queue.Queue[logging.LogRecord], writer: logging.Handler) -> None:
        super().__init__(waiting, writer)
        self._waiting = waiting
        self._ending = threading.Event()

    def dequeue(self, block: bool) -> logging.LogRecord:
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            record = self._waiting.get(block)
        if not self._ending.is_set():
            self._ending.wait(_PAUSE_S)
        return record

    def stop(self) -> None:
        """Write what waits, and end."""
        self._ending.set()
        super().stop()


class _Writer(logging.StreamHandler[TextIO]):
    """Belongs to the thread; the file behind its stream is kept within its limit."""

    def __init__(self, stream: TextIO, file: LogFile | None) -> None:
        super().__init__(stream)
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if self._file is not None:
            self._file.rotate_if_full()


@contextmanager
def logging_to(
    log_format: LogFormat, level: LogLevel, stream: TextIO | None = None, *, file: LogFile | None = None
) -> Iterator[None]:
    """structlog and the standard library's logging for this process; at the end all that waits is written.

    ``file`` is what stderr is, if that is to be kept within bounds.
    """
    stream = stream or sys.stderr
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(_WAITING_LINES)
    before = _first()
    writer = _Writer(stream, file)
    writer.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=_last(log_format, stream))
    )
    root = logging.getLogger()
    handlers, old_level = root.handlers[:], root.level
    root.handlers[:] = [_Handover(waiting)]
    root.setLevel(level.upper())
    for chatty in ("asyncio", "aiohttp"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            _take_exception,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    listener = _Listener(waiting, writer)
    listener.start()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(old_level)
        structlog.reset_defaults()
        listener.stop()


def _first() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _take_exception(_logger: object, _method: str, event: EventDict) -> EventDict:
    """The exception that is being handled here and now: the thread that writes it has none."""
    if event.get("exc_info") is True:
        event["exc_info"] = sys.exc_info()
    return event


def _last(log_format: LogFormat, stream: TextIO) -> list[Processor]:
    processors: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if log_format == "json" or (log_format == "auto" and not stream.isatty()):
        # Without the values of local variables: they may be secrets.
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            *processors,
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ]
    renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=_harmless_traceback)
    return [*processors, _harmless, renderer]


def _harmless(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Values without what a terminal would obey: paths of requests and words of VMMs are among them."""
    for name, value in event.items():
        if name != "exc_info" and not isinstance(value, (int, float, bool, type(None))):
            event[name] = neutral_line(str(value))
    return event


def _harmless_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(neutral(text.getvalue()))
