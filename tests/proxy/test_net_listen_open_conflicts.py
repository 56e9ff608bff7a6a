# SPDX-License-Identifier: Apache-2.0
"""The kernel's list of who listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mailproxy.net import listen_open
from mailproxy.net.listen_open import is_used_by_other_process
from mailproxy.net.listen_plan import ListenRef, SocketPlan


def planned(address: str, port: int, *, ipv6only: bool = True) -> SocketPlan:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return SocketPlan(
        key="", family=family, address=address, port=port, ipv6only=ipv6only, default=ListenRef(0, 0)
    )


def test_our_own_listeners_are_no_strangers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert [address for address, _ in listen_open._listeners(socket.AF_INET, port)] == [b"\x7f\0\0\1"]
        assert not is_used_by_other_process(planned("127.0.0.1", port))


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {}:008F 00000000:0000 {} 00000000:00000000 00:00000000 00000000  1000 0 1 1 0 100 0 0 10 0\n"
LOOPBACK, ANY, LOOPBACK_6, ANY_6 = "0100007F", "0" * 8, "0" * 24 + "01000000", "0" * 32


@pytest.mark.parametrize(
    ("v4", "v6", "mine", "ipv6only", "is_taken"),
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
def test_strangers_are_those_who_are_in_the_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    v4: list[tuple[str, str]],
    v6: list[tuple[str, str]],
    mine: str,
    ipv6only: bool,
    is_taken: bool,
) -> None:
    tables = {socket.AF_INET: tmp_path / "tcp", socket.AF_INET6: tmp_path / "tcp6"}
    for family, lines in ((socket.AF_INET, v4), (socket.AF_INET6, v6)):
        tables[family].write_text(HEAD + "".join(LINE.format(*line) for line in lines))
    monkeypatch.setattr(listen_open, "_TABLES", tables)
    assert is_used_by_other_process(planned(mine, 143, ipv6only=ipv6only)) is is_taken


def test_where_the_kernel_does_not_tell_there_may_be_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen_open, "_TABLES", {socket.AF_INET: tmp_path / "absent"})
    assert is_used_by_other_process(planned("127.0.0.1", 143))
