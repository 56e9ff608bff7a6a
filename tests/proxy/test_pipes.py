# SPDX-License-Identifier: Apache-2.0
"""The pool of pipes: kept pipes are empty, their number is limited, none is lost."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from mailproxy.net import pipes as module
from mailproxy.net.pipes import MAX_KEPT, Pipe, Pipes


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    made.close()


def take(pipes: Pipes) -> Pipe:
    pipe = pipes.take()
    assert pipe is not None
    return pipe


def is_open(pipe: Pipe) -> bool:
    try:
        os.fstat(pipe.read)
        os.fstat(pipe.write)
    except OSError:
        return False
    return True


def refuse(*_: object) -> NoReturn:
    raise OSError(errno.EMFILE, "no more")


def test_pipe_is_empty_large_and_non_blocking(pipes: Pipes) -> None:
    pipe = take(pipes)
    assert pipe.holds == 0
    assert pipe.size == fcntl.fcntl(pipe.write, fcntl.F_GETPIPE_SZ)
    with pytest.raises(BlockingIOError):
        os.read(pipe.read, 1)
    assert not os.get_inheritable(pipe.read)
    assert not os.get_inheritable(pipe.write)
    pipes.give_back(pipe)


def test_pipe_that_cannot_grow_has_the_default_size(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "fcntl", refuse)
        pipe = take(pipes)
    assert pipe.size == fcntl.fcntl(pipe.write, fcntl.F_GETPIPE_SZ)
    pipes.give_back(pipe)


def test_empty_pipe_is_used_again(pipes: Pipes) -> None:
    pipe = take(pipes)
    pipes.give_back(pipe)
    assert take(pipes) is pipe
    assert is_open(pipe)
    pipes.discard(pipe)


def test_pipe_that_holds_bytes_is_not_used_again(pipes: Pipes) -> None:
    pipe = take(pipes)
    pipe.holds = os.write(pipe.write, b"unread bytes")
    pipes.give_back(pipe)
    assert not is_open(pipe)
    other = take(pipes)
    assert other.holds == 0
    with pytest.raises(BlockingIOError):
        os.read(other.read, 1)
    pipes.discard(other)


def test_number_of_kept_pipes_is_limited(pipes: Pipes) -> None:
    taken = [take(pipes) for _ in range(MAX_KEPT + 3)]
    for pipe in taken:
        pipes.give_back(pipe)
    assert sum(map(is_open, taken)) == MAX_KEPT


def test_number_of_pipes_is_limited(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIPES", 2)
    first, second = take(pipes), take(pipes)
    assert pipes.take() is None
    pipes.discard(first)
    third = take(pipes)
    assert pipes.take() is None
    pipes.discard(second)
    pipes.discard(third)


def test_take_returns_none_without_descriptors(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIPES", 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe2", refuse)
        assert pipes.take() is None
    pipes.discard(take(pipes))


def test_close_closes_kept_pipes() -> None:
    pipes = Pipes()
    kept, used = take(pipes), take(pipes)
    pipes.give_back(kept)
    pipes.close()
    assert (is_open(kept), is_open(used)) == (False, True)
    pipes.give_back(used)
    pipes.close()
    assert not is_open(used)
