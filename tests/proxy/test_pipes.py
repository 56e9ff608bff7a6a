# SPDX-License-Identifier: Apache-2.0
"""The stock of pipes: empty ones go in and out, there are never too many, none is lost."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from mailproxy.net import pipes as module
from mailproxy.net.pipes import PIPES_KEPT, Pipe, Pipes


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


def test_a_pipe_is_empty_large_and_does_not_wait(pipes: Pipes) -> None:
    pipe = take(pipes)
    assert pipe.holds == 0
    assert pipe.size == fcntl.fcntl(pipe.write, fcntl.F_GETPIPE_SZ)
    with pytest.raises(BlockingIOError):
        os.read(pipe.read, 1)
    assert not os.get_inheritable(pipe.read)
    assert not os.get_inheritable(pipe.write)
    pipes.give_back(pipe)


def test_where_it_cannot_grow_it_is_as_the_kernel_makes_it(
    pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "fcntl", refuse)
        pipe = take(pipes)
    assert pipe.size == fcntl.fcntl(pipe.write, fcntl.F_GETPIPE_SZ)
    pipes.give_back(pipe)


def test_an_empty_pipe_is_used_again(pipes: Pipes) -> None:
    pipe = take(pipes)
    pipes.give_back(pipe)
    assert take(pipes) is pipe
    assert is_open(pipe)
    pipes.discard(pipe)


def test_a_pipe_that_holds_bytes_is_never_used_again(pipes: Pipes) -> None:
    pipe = take(pipes)
    pipe.holds = os.write(pipe.write, b"somebody's mail")
    pipes.give_back(pipe)
    assert not is_open(pipe)
    other = take(pipes)
    assert other.holds == 0
    with pytest.raises(BlockingIOError):
        os.read(other.read, 1)
    pipes.discard(other)


def test_only_a_few_are_kept(pipes: Pipes) -> None:
    taken = [take(pipes) for _ in range(PIPES_KEPT + 3)]
    for pipe in taken:
        pipes.give_back(pipe)
    assert sum(map(is_open, taken)) == PIPES_KEPT


def test_there_are_never_more_than_the_limit(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIPES_AT_MOST", 2)
    first, second = take(pipes), take(pipes)
    assert pipes.take() is None
    pipes.discard(first)
    third = take(pipes)
    assert pipes.take() is None
    pipes.discard(second)
    pipes.discard(third)


def test_without_descriptors_there_is_none_and_nothing_is_counted(
    pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIPES_AT_MOST", 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe2", refuse)
        assert pipes.take() is None
    pipes.discard(take(pipes))


def test_closing_lets_go_of_the_stock() -> None:
    pipes = Pipes()
    kept, used = take(pipes), take(pipes)
    pipes.give_back(kept)
    pipes.close()
    assert (is_open(kept), is_open(used)) == (False, True)
    pipes.give_back(used)
    pipes.close()
    assert not is_open(used)
