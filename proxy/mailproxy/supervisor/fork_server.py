# SPDX-License-Identifier: Apache-2.0
"""The fork server: a process with one thread that has imported everything a worker needs, and forks workers.

Most of the time and memory of a worker's start is the import of its modules.
The fork server imports them once; a worker is a copy of it, and shares its
memory pages until one of them writes to them.

It has no event loop, no thread, no log, no listening socket and no
configuration, so a worker inherits none of these: configuration, sockets and
secrets reach a worker through its own ``Channel``.  Descriptors other than 0
to 2, the supervisor's socket, the worker's end of its channel and the memory
that workers share (``net.shared_memory``) are closed.

A worker is forked twice.  The process in between exits at once, and the
supervisor, a subreaper (prctl(2)), becomes the worker's parent: it receives
the exit status itself, also after the fork server has exited.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import gc
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, Protocol, cast

NAME: Final = "mailproxy-fork"
"""The process's name (``/proc/PID/comm``)."""
WORKER_NAME: Final = "mailproxy-work"
"""The name of the workers' processes."""
MAX_REQUEST_SIZE: Final = 4096
"""The longest request and reply, in bytes."""

_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_RESULT: Final = struct.Struct("i")
_DESCRIPTORS: Final = 2
"""Descriptors of a request."""


class WorkerModule(Protocol):
    """The module that a worker runs: ``mailproxy.worker``, or a stand-in for tests."""

    def preload(self) -> None:
        """Load, once, what all workers need."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a worker process; returns the exit code."""


@dataclass(frozen=True, slots=True)
class ForkServer:
    """A running fork server: its process ID, and the supervisor's end of its socket."""

    pid: int
    control: socket.socket


def become_subreaper() -> None:
    """Become the parent of workers whose own parent has exited (``PR_SET_CHILD_SUBREAPER``).

    This process then receives their exit codes.

    Raises:
        OSError: prctl(2) failed.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is inherited as ignored, there are no exit codes
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def fork(module: str) -> ForkServer:
    """Fork a fork server from this process, which must have one thread and no event loop.

    Args:
        module: The name of a ``WorkerModule``.

    Raises:
        OSError: No process or no sockets could be created.
    """
    ours, theirs = _sockets()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _run_and_exit(lambda: _run(module, theirs))
    theirs.close()
    return ForkServer(pid, ours)


def spawn(module: str) -> ForkServer:
    """Start a fork server as a fresh interpreter, from a process that may have threads.

    Args:
        module: The name of a ``WorkerModule``.

    Raises:
        OSError: No process or no sockets could be created.
    """
    ours, theirs = _sockets()
    command = [sys.executable, *_interpreter_flags(), "-m", __name__, module]
    try:
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [*command, "--control-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
    except BaseException:
        ours.close()
        raise
    process.returncode = 0  # ChildProcess waits for it
    return ForkServer(process.pid, ours)


def encode_request(arguments: Sequence[str]) -> bytes:
    """Encode a request for a worker with these arguments.

    Two descriptors are sent with it: the worker's end of its channel, and the memory that all workers share.
    """
    return json.dumps(list(arguments)).encode()


def decode_reply(reply: bytes) -> int:
    """Decode the reply to a request: the worker's process ID.

    Raises:
        OSError: No worker was started.
    """
    if len(reply) != _RESULT.size:
        raise ConnectionResetError(errno.ECONNRESET, "the fork server has ended")
    result: int = _RESULT.unpack(reply)[0]
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run a fork server; the command line is that of ``spawn``."""
    parser = argparse.ArgumentParser(prog=__name__, description="Started by mailproxy run.")
    parser.add_argument("module")
    parser.add_argument("--control-fd", type=int, required=True)
    options = parser.parse_args(argv)
    return _run(options.module, socket.socket(fileno=options.control_fd))


def _sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _interpreter_flags() -> list[str]:
    """Return the options that this interpreter was started with."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public one
    return flags


def _run(module: str, control: socket.socket) -> int:
    """Import the module, and fork a worker for each request until the supervisor closes its end."""
    os.setsid()  # Ctrl-C in a terminal is sent to the supervisor alone
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    _keep_only(control.fileno())
    _set_name(NAME)
    worker = cast(WorkerModule, importlib.import_module(module))
    worker.preload()
    gc.collect()
    gc.freeze()  # a collection writes to every object, and each worker would get its own copy of the pages
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_SIZE, _DESCRIPTORS)
        if not request:
            return 0
        if len(descriptors) == _DESCRIPTORS:
            result = _fork_worker(control, partial(_run_worker, worker, request, *descriptors))
        else:  # lost, because this process may open no more
            result = -errno.EMFILE
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(_RESULT.pack(result))


def _run_worker(worker: WorkerModule, request: bytes, channel: int, memory: int) -> int:
    return worker.main([*json.loads(request), f"--control-fd={channel}", f"--memory-fd={memory}"])


def _fork_worker(control: socket.socket, work: Callable[[], int]) -> int:
    """Fork a worker whose parent is the supervisor; returns its process ID, or a negative errno."""
    try:
        ours, theirs = os.pipe()
    except OSError as error:
        return -(error.errno or errno.EMFILE)
    try:
        between = os.fork()
        if between == 0:
            os.close(ours)
            _run_and_exit(lambda: _fork_again(theirs, control, work))
        os.waitpid(between, 0)
        os.set_blocking(ours, False)
        answer = os.read(ours, _RESULT.size)
        return int(_RESULT.unpack(answer)[0])
    except (BlockingIOError, struct.error):  # the process in between was killed
        return -errno.EAGAIN
    except OSError as error:
        return -(error.errno or errno.EAGAIN)
    finally:
        os.close(ours)
        os.close(theirs)


def _fork_again(pipe: int, control: socket.socket, work: Callable[[], int]) -> int:
    try:
        pid = os.fork()
    except OSError as error:
        os.write(pipe, _RESULT.pack(-(error.errno or errno.EAGAIN)))
        return 1
    if pid == 0:
        _run_and_exit(lambda: _work(pipe, control, work))
    with suppress(BrokenPipeError):  # the fork server has ended; the worker ends when it finds no supervisor
        os.write(pipe, _RESULT.pack(pid))
    return 0


def _work(pipe: int, control: socket.socket, work: Callable[[], int]) -> int:
    """Run a worker: it keeps nothing of the fork server but its memory."""
    os.setsid()
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    control.close()
    os.close(pipe)
    _set_name(WORKER_NAME)
    return work()


def _run_and_exit(run: Callable[[], int]) -> NoReturn:
    """Run a forked process to its end; it never returns into its parent's code."""
    code = 1
    try:
        code = run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _keep_only(descriptor: int) -> None:
    """Close all descriptors but the standard ones and this one; standard input becomes ``/dev/null``."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != descriptor:  # one of them was the listing's own
            with suppress(OSError):
                os.close(int(name))


def _set_name(name: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
