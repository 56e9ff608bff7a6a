# SPDX-License-Identifier: Apache-2.0
"""A reload opens new sockets and closes removed ones; a failed reload changes nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailproxy.net.bind_errors import ListenError
from mailproxy.net.listen_plan import ListenRef, SocketPlan
from mailproxy.supervisor.listening_sockets import ListeningSockets, SocketSet
from support.proxy_process import free_port


def tcp(port: int, *, rcvbuf: int | None = None, backlog: int = 511) -> SocketPlan:
    return SocketPlan(
        key=f"127.0.0.1:{port}",
        family=socket.AF_INET,
        address="127.0.0.1",
        port=port,
        rcvbuf=rcvbuf,
        backlog=backlog,
        default=ListenRef(0, 0),
    )


def unix(path: Path) -> SocketPlan:
    return SocketPlan(
        key=f"unix:{path}", family=socket.AF_UNIX, address=str(path), port=0, default=ListenRef(0, 0)
    )


@pytest.fixture
def listeners() -> Iterator[ListeningSockets]:
    found = ListeningSockets()
    yield found
    found.close()


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def numbers(sockets: SocketSet) -> dict[str, list[int]]:
    return {key: [sock.fileno() for sock in group] for key, group in sockets.by_key.items()}


def test_every_worker_gets_a_socket_of_each_address_and_all_share_a_path(
    listeners: ListeningSockets, tmp_path: Path
) -> None:
    port, path = free_port(), tmp_path / "x"
    sockets = listeners.prepare([tcp(port), unix(path)], 3)
    listeners.commit(sockets)
    assert {key: len(group) for key, group in sockets.by_key.items()} == {
        f"127.0.0.1:{port}": 3,
        f"unix:{path}": 1,
    }
    assert is_open(port)


def test_unchanged_sockets_are_not_reopened(listeners: ListeningSockets) -> None:
    kept, dropped, added = free_port(), free_port(), free_port()
    first = listeners.prepare([tcp(kept), tcp(dropped)], 1)
    listeners.commit(first)
    second = listeners.prepare([tcp(added), tcp(kept)], 1)
    assert is_open(dropped)
    assert is_open(added)
    listeners.commit(second)
    assert not is_open(dropped)
    assert numbers(second)[f"127.0.0.1:{kept}"] == numbers(first)[f"127.0.0.1:{kept}"]


def test_the_number_of_sockets_follows_the_number_of_workers(listeners: ListeningSockets) -> None:
    port = free_port()
    listeners.commit(listeners.prepare([tcp(port)], 1))
    three = listeners.prepare([tcp(port)], 3)
    listeners.commit(three)
    revision = listeners.prepare([tcp(port)], 1)
    listeners.commit(revision)
    assert numbers(revision) == numbers(three)  # clients may be queued at each


def test_number_of_surplus_sockets_is_limited(
    listeners: ListeningSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy.supervisor.listening_sockets.MAX_SURPLUS_SOCKETS", 5)
    port, other = free_port(), free_port()
    many = listeners.prepare([tcp(port), tcp(other)], 4)
    listeners.commit(many)
    listeners.commit(listeners.prepare([tcp(port), tcp(other)], 1))
    opened = [[sock.fileno() > 0 for sock in group] for group in many.by_key.values()]
    assert opened == [[True, True, True, False]] * 2
    assert is_open(port)


def test_discard_closes_new_sockets_and_restores_options(listeners: ListeningSockets, tmp_path: Path) -> None:
    port, other, path = free_port(), free_port(), tmp_path / "x"
    first = listeners.prepare([tcp(port, rcvbuf=8192)], 1)
    listeners.commit(first)
    before = numbers(first)
    second = listeners.prepare([tcp(port, rcvbuf=16384), tcp(other), unix(path)], 2)
    listeners.discard(second)
    assert is_open(port)
    assert not is_open(other)
    assert not path.exists()
    assert numbers(first) == before
    (sock,) = first.by_key[f"127.0.0.1:{port}"]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 8192


def test_failure_closes_new_sockets(listeners: ListeningSockets) -> None:
    port, other = free_port(), free_port()
    listeners.commit(listeners.prepare([tcp(port)], 1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = [tcp(port), tcp(other), tcp(taken.getsockname()[1])]
        with pytest.raises(ListenError):
            listeners.prepare(wanted, 2)
    assert is_open(port)
    assert not is_open(other)


def test_changed_fixed_option_reopens_the_address(
    listeners: ListeningSockets,
) -> None:
    port = free_port()
    first = listeners.prepare([tcp(port, rcvbuf=8192)], 1)
    listeners.commit(first)
    second = listeners.prepare([tcp(port)], 1)
    assert numbers(first) != numbers(second)
    listeners.commit(second)
    assert is_open(port)
    assert first.by_key[f"127.0.0.1:{port}"][0].fileno() == -1


def test_closing_frees_ports_and_removes_files(listeners: ListeningSockets, tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "x"
    listeners.commit(listeners.prepare([tcp(port), unix(path)], 2))
    assert path.exists()
    listeners.close()
    listeners.close()
    assert not is_open(port)
    assert not path.exists()


def test_clamped_options_are_reported_by_address(listeners: ListeningSockets) -> None:
    port = free_port()
    sockets = listeners.prepare([tcp(port, backlog=2**30)], 2)
    listeners.commit(sockets)
    clamped = [(key, clamp.option, clamp.wanted) for key, clamp in sockets.clamped_options()]
    assert clamped == [(f"127.0.0.1:{port}", "backlog", 2**30)]
