# SPDX-License-Identifier: Apache-2.0
"""Opening and closing listening sockets."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mailproxy.net import listen_open
from mailproxy.net.bind_errors import ListenError
from mailproxy.net.listen_open import (
    close_sockets,
    is_used_by_other_process,
    open_sockets,
    remove_stale_socket,
)
from mailproxy.net.listen_plan import ListenRef, SocketPlan
from mailproxy_config.model import KeepAlive
from support.proxy_process import free_port

R00 = ListenRef(0, 0)


def ipv4(address: str, port: int) -> SocketPlan:
    return SocketPlan(key=f"{address}:{port}", family=socket.AF_INET, address=address, port=port, default=R00)


def ipv6(address: str, port: int, *, ipv6only: bool = True) -> SocketPlan:
    return SocketPlan(
        key=f"[{address}]:{port}",
        family=socket.AF_INET6,
        address=address,
        port=port,
        ipv6only=ipv6only,
        default=R00,
    )


def unix(path: Path) -> SocketPlan:
    return SocketPlan(key=f"unix:{path}", family=socket.AF_UNIX, address=str(path), port=0, default=R00)


@contextmanager
def opened(*plans: SocketPlan, count: int = 1) -> Iterator[list[list[socket.socket]]]:
    with ExitStack() as closing:
        sockets = []
        for planned in plans:
            some = open_sockets(planned, count, sleep=never)
            closing.callback(close_sockets, planned, some)
            sockets.append(some)
        yield sockets


def never(_: float) -> None:
    raise AssertionError("waited")


def connect(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port))


def socket_that_accepts(sockets: list[list[socket.socket]], address: str, port: int) -> int:
    """Connect, and return the group of sockets that can accept."""
    with connect(address, port):
        ready, _, _ = select.select([sock for some in sockets for sock in some], [], [], 5)
        ready[0].accept()[0].close()
    return next(number for number, some in enumerate(sockets) if ready[0] in some)


def test_every_worker_has_a_socket_of_its_own() -> None:
    port = free_port()
    with opened(ipv4("127.0.0.1", port), count=3) as [sockets]:
        assert len({sock.fileno() for sock in sockets}) == 3
        for sock in sockets:
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
            assert sock.getsockname() == ("127.0.0.1", port)
        reached = set()
        for _ in range(200):
            with connect("127.0.0.1", port):
                ready, _, _ = select.select(sockets, [], [], 5)
                ready[0].accept()[0].close()
                reached.add(ready[0])
    assert reached == set(sockets)


@pytest.mark.parametrize("ipv6only", [True, False])
def test_ipv6_wildcard_accepts_ipv4_only_with_ipv6only_off(ipv6only: bool) -> None:
    port = free_port()
    planned = ipv6("::", port, ipv6only=ipv6only)
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        with pytest.raises(ListenError, match="address family"):
            open_sockets(planned, 1)
        return
    with opened(planned) as sockets:
        assert sockets[0][0].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == ipv6only
        assert socket_that_accepts(sockets, "::1", port) == 0
        if ipv6only:
            with pytest.raises(ConnectionRefusedError):
                connect("127.0.0.1", port)
        else:
            assert socket_that_accepts(sockets, "127.0.0.1", port) == 0


def test_a_wildcard_and_an_address_of_its_port_can_both_listen() -> None:
    port = free_port()
    with opened(ipv4("0.0.0.0", port), ipv4("127.0.0.1", port)) as sockets:
        assert [socket_that_accepts(sockets, address, port) for address in ("127.0.0.1", "127.0.0.2")] == [
            1,
            0,
        ]


def test_a_dual_stack_wildcard_and_an_ipv4_wildcard_can_both_listen() -> None:
    if not Path("/proc/net/if_inet6").exists():
        return
    port = free_port()
    with opened(ipv6("::", port, ipv6only=False), ipv4("0.0.0.0", port)) as sockets:
        assert [socket_that_accepts(sockets, address, port) for address in ("127.0.0.1", "::1")] == [1, 0]


def test_a_socket_can_be_replaced_without_a_gap() -> None:
    port = free_port()
    planned = ipv4("127.0.0.1", port)
    with opened(planned) as [old]:
        (new,) = open_sockets(planned, 1, sleep=never)
        close_sockets(planned, old)
        assert socket_that_accepts([[new]], "127.0.0.1", port) == 0
        new.close()


def test_number_of_sockets_follows_the_number_of_workers_at_reload() -> None:
    planned = ipv4("127.0.0.1", free_port())
    with opened(planned, count=2) as [sockets]:
        more = open_sockets(planned, 3, inherited=sockets, sleep=never)
        assert more[:2] == sockets
        assert open_sockets(planned, 1, inherited=more, sleep=never) == sockets[:1]
        assert more[2].fileno() >= 0
        more[2].close()


OTHER_PROCESS = """
import socket, sys
sock = socket.socket(getattr(socket, sys.argv[1]))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(sys.argv[4]))
sock.bind((sys.argv[2], int(sys.argv[3])))
sock.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@contextmanager
def other_process(address: str, port: int, *, shares: bool) -> Iterator[None]:
    """Another process of the same user that listens, with or without SO_REUSEPORT."""
    family = "AF_INET6" if ":" in address else "AF_INET"
    command = [sys.executable, "-c", OTHER_PROCESS, family, address, str(port), str(int(shares))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("other_address", ["127.0.0.1", "0.0.0.0"])
def test_port_of_another_process_is_not_shared(shares: bool, other_address: str) -> None:
    port = free_port()
    pauses: list[float] = []
    with other_process(other_address, port, shares=shares), pytest.raises(ListenError) as refused:
        open_sockets(ipv4("127.0.0.1", port), 2, sleep=pauses.append)
    assert pauses == [0.5] * 4
    assert refused.value.key == f"127.0.0.1:{port}"
    assert "in use" in refused.value.reason
    assert refused.value.hint


def test_listener_of_another_process_is_detected_beside_own_socket() -> None:
    port = free_port()
    with other_process("127.0.0.1", port, shares=True), opened_wildcard(port), pytest.raises(ListenError):
        open_sockets(ipv4("127.0.0.1", port), 1, sleep=lambda _: None)


@contextmanager
def opened_wildcard(port: int) -> Iterator[None]:
    """A wildcard socket of this process, bound in spite of the other process."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen()
        yield


def test_port_that_becomes_free_is_opened() -> None:
    port = free_port()
    pauses: list[float] = []
    with ExitStack() as there:
        there.enter_context(other_process("127.0.0.1", port, shares=True))

        def wait(seconds: float) -> None:
            pauses.append(seconds)
            there.close()

        (sock,) = open_sockets(ipv4("127.0.0.1", port), 1, sleep=wait)
    assert pauses == [0.5]
    sock.close()


def test_other_errors_are_raised_without_retry() -> None:
    with pytest.raises(ListenError) as refused:
        open_sockets(ipv4("192.0.2.1", 143), 1, sleep=never)
    assert str(refused.value) == (
        "cannot listen on 192.0.2.1:143: Cannot assign requested address"
        " (no interface of this machine has this address)"
    )


def test_rejected_option_leaves_no_socket_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    planned = replace(ipv4("127.0.0.1", free_port()), keepalive=KeepAlive(count=1000))
    with pytest.raises(ListenError, match="Invalid argument"):
        open_sockets(planned, 3, sleep=never)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Drop root privileges, if any, for one test."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    yield
    os.seteuid(user)


@pytest.mark.usefixtures("unprivileged")
def test_privileged_port_error_has_a_hint() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    planned = ipv4("127.0.0.1", 143)
    if first <= 143:
        with suppress(ListenError):  # it may be in use, but it is not privileged
            close_sockets(planned, open_sockets(planned, 1, sleep=lambda _: None))
        return
    with pytest.raises(ListenError) as refused:
        open_sockets(planned, 1, sleep=never)
    assert refused.value.reason == "Permission denied"
    assert "ip_unprivileged_port_start to 143 or less" in refused.value.hint
    assert "CAP_NET_BIND_SERVICE" in refused.value.hint


def kernel_has_multipath() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP).close()
    except OSError:
        return False
    return True


def test_multipath_tcp_is_used_or_error_has_a_hint() -> None:
    port = free_port()
    planned = replace(ipv4("127.0.0.1", port), multipath=True)
    if not kernel_has_multipath():
        with pytest.raises(ListenError, match="Multipath TCP"):
            open_sockets(planned, 1, sleep=never)
        return
    with opened(planned, count=2) as sockets:
        assert all(sock.proto == socket.IPPROTO_MPTCP for sock in sockets[0])
        assert socket_that_accepts(sockets, "127.0.0.1", port) == 0
        plain = open_sockets(replace(planned, multipath=False), 1, sleep=never)
        back = open_sockets(planned, 1, sleep=never)  # with both values, while the replaced socket is open
        close_sockets(planned, plain + back)


def test_unix_path_is_one_socket_with_mode_0666(tmp_path: Path) -> None:
    planned = unix(tmp_path / "imap.sock")
    sockets = open_sockets(planned, 4, sleep=never)
    assert len(sockets) == 1
    assert stat.S_IMODE((tmp_path / "imap.sock").stat().st_mode) == 0o666
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(planned.address)
        sockets[0].accept()[0].close()
    assert open_sockets(planned, 2, inherited=sockets, sleep=never) == sockets
    close_sockets(planned, sockets)
    assert not (tmp_path / "imap.sock").exists()


def test_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "imap.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with opened(unix(path)):
        assert path.is_socket()


def test_unix_socket_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "imap.sock"
    pauses: list[float] = []
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        with pytest.raises(ListenError, match="in use"):
            open_sockets(unix(path), 1, sleep=pauses.append)
        close_sockets(unix(path), [])
        assert path.is_socket()
    assert len(pauses) == 4


def test_file_that_is_not_a_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "imap.sock"
    path.write_text("mine")
    with pytest.raises(ListenError, match="not a socket"):
        open_sockets(unix(path), 1, sleep=never)
    close_sockets(unix(path), [])
    assert path.read_text() == "mine"


def test_unix_path_without_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="directory of the socket does not exist"):
        open_sockets(unix(tmp_path / "absent" / "imap.sock"), 1, sleep=never)


def planned(address: str, port: int, *, ipv6only: bool = True) -> SocketPlan:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return SocketPlan(
        key="", family=family, address=address, port=port, ipv6only=ipv6only, default=ListenRef(0, 0)
    )


def test_own_listeners_are_not_conflicts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert [address for address, _ in listen_open.find_listeners(socket.AF_INET, port)] == [b"\x7f\0\0\1"]
        assert not is_used_by_other_process(planned("127.0.0.1", port))


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {}:008F 00000000:0000 {} 00000000:00000000 00:00000000 00000000  1000 0 1 1 0 100 0 0 10 0\n"
LOOPBACK, ANY, LOOPBACK_6, ANY_6 = "0100007F", "0" * 8, "0" * 24 + "01000000", "0" * 32


@pytest.mark.parametrize(
    ("v4", "v6", "address", "ipv6only", "is_taken"),
    [
        ([(LOOPBACK, "0A")], [], "127.0.0.1", True, True),
        ([(LOOPBACK, "0A")], [], "0.0.0.0", True, True),
        ([(ANY, "0A")], [], "127.0.0.1", True, True),
        ([(LOOPBACK, "0A")], [], "127.0.0.2", True, False),
        ([(LOOPBACK, "01")], [], "127.0.0.1", True, False),  # connected, not listening
        ([], [(LOOPBACK_6, "0A")], "::1", True, True),
        ([], [(ANY_6, "0A")], "::1", True, True),
        ([], [(LOOPBACK_6, "0A")], "::2", True, False),
        ([(ANY, "0A")], [], "::", True, False),
        ([(ANY, "0A")], [], "::", False, True),  # both families
    ],
)
def test_listeners_of_other_processes_are_conflicts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    v4: list[tuple[str, str]],
    v6: list[tuple[str, str]],
    address: str,
    ipv6only: bool,
    is_taken: bool,
) -> None:
    tables = {socket.AF_INET: tmp_path / "tcp", socket.AF_INET6: tmp_path / "tcp6"}
    for family, lines in ((socket.AF_INET, v4), (socket.AF_INET6, v6)):
        tables[family].write_text(HEAD + "".join(LINE.format(*line) for line in lines))
    monkeypatch.setattr(listen_open, "SOCKET_TABLES", tables)
    assert is_used_by_other_process(planned(address, 143, ipv6only=ipv6only)) is is_taken


def test_unreadable_proc_counts_as_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_open, "SOCKET_TABLES", {socket.AF_INET: tmp_path / "absent"})
    assert is_used_by_other_process(planned("127.0.0.1", 143))


def test_stale_socket_is_removed_and_missing_file_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
    remove_stale_socket(str(path))
    assert not path.exists()
    remove_stale_socket(str(path))


def test_socket_with_full_backlog_is_not_stale(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(str(path))
        sock.listen(0)
        client.connect(str(path))
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is what counts
            remove_stale_socket(str(path))
    assert refused.value.errno == errno.EADDRINUSE
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_file_that_is_not_a_socket_is_not_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is what counts
        remove_stale_socket(str(path))
    assert refused.value.errno == errno.ENOTSOCK
    assert path.is_symlink() or path.exists()
