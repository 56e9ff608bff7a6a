# SPDX-License-Identifier: Apache-2.0
"""Session resumption: caches, tickets, and the rotation of ticket keys."""

from __future__ import annotations

import multiprocessing
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mailproxy.supervisor.key_rotation import KeyRotation, rotated_timeouts
from mailproxy.tls.context import ServerTls
from mailproxy.tls.resumption import TicketKey, TicketKeys
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import ByteCount, Protocol, ProxyConfig, Seconds, SessionCache
from support.configs import server
from support.tls_authority import Authority, Issued
from support.tls_peers import KEY, TLS_PORT, TlsPair, client_context, connect_once, serve_tls, server_tls

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
BUILTIN = SessionCache(builtin=100)
SHARED = SessionCache(shared_name="MAIL", shared_size=ByteCount(1 << 20))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server_certificate(authority: Authority) -> Issued:
    return authority.issue()


def client(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = client_context()
    context.minimum_version = context.maximum_version = version
    return context


def is_resumed(first: ServerTls, second: ServerTls, version: ssl.TLSVersion) -> bool:
    """Whether a session of the first is resumed by the second."""
    context = client(version)
    _, session = connect_once(first, context)
    info, _ = connect_once(second, context, session=session)
    return info.resumed


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("tickets", "cache", "resumed"),
    [
        (True, SessionCache(), True),
        (True, SessionCache(off=True), True),
        (False, SessionCache(), False),
        (False, SessionCache(off=True), False),
        (False, BUILTIN, True),
        (False, SHARED, True),
        (True, BUILTIN, True),
        (False, SessionCache(builtin=0), True),  # the default number
    ],
)
def test_resumption_by_ticket_and_cache(
    server_certificate: Issued, tickets: bool, cache: SessionCache, resumed: bool, version: ssl.TLSVersion
) -> None:
    tls = server_tls(server_certificate, ssl_session_tickets=tickets, ssl_session_cache=cache)
    assert is_resumed(tls, tls, version) is resumed


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("directives", "resumed"),
    [
        ({}, True),  # another worker, or the same after a reload
        ({"protocol": Protocol.POP3}, True),  # another mail server with the same certificate, as in nginx
        ({"key": bytes(80)}, False),
        ({"ssl_session_tickets": False}, False),
    ],
)
def test_context_with_same_ticket_key_resumes(
    server_certificate: Issued, directives: dict[str, Any], resumed: bool, version: ssl.TLSVersion
) -> None:
    assert (
        is_resumed(server_tls(server_certificate), server_tls(server_certificate, **directives), version)
        is resumed
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_session_is_not_resumed_with_other_certificate(
    authority: Authority, server_certificate: Issued, version: ssl.TLSVersion
) -> None:
    assert not is_resumed(server_tls(server_certificate), server_tls(authority.issue()), version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("closed_by", ["client without close_notify", "client with close_notify", "server"])
def test_cached_session_is_kept_after_close(
    server_certificate: Issued, closed_by: str, version: ssl.TLSVersion
) -> None:
    tls = server_tls(server_certificate, ssl_session_tickets=False, ssl_session_cache=SHARED)
    context = client(version)
    first = TlsPair(tls, context)
    first.handshake()
    assert first.send_to_client(b"x") == b"x"
    session = first.client.session
    if closed_by == "client without close_notify":
        first.client.close()
        assert first.server.recv() == b""
    elif closed_by == "client with close_notify":
        first.client.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            first.client.unwrap()
        assert first.server.recv() == b""
    first.close()
    info, _ = connect_once(tls, context, session=session)
    assert info.resumed


def test_cache_is_per_worker(server_certificate: Issued) -> None:
    directives: dict[str, Any] = {"ssl_session_tickets": False, "ssl_session_cache": SHARED}
    assert not is_resumed(
        server_tls(server_certificate, **directives),
        server_tls(server_certificate, **directives),
        ssl.TLSVersion.TLSv1_2,
    )


def test_cache_size_is_limited(server_certificate: Issued) -> None:
    tls = server_tls(server_certificate, ssl_session_tickets=False, ssl_session_cache=SessionCache(builtin=3))
    context = client(ssl.TLSVersion.TLSv1_2)
    for _ in range(10):
        connect_once(tls, context)
    assert 0 < tls.params.context.session_stats()["number"] <= 3


def test_session_timeout_is_applied(server_certificate: Issued) -> None:
    context = client(ssl.TLSVersion.TLSv1_3)
    _, session = connect_once(server_tls(server_certificate, ssl_session_timeout=Seconds(600.0)), context)
    assert session is not None
    assert session.ticket_lifetime_hint == 600


def test_number_of_tickets_sent(server_certificate: Issued) -> None:
    assert server_tls(server_certificate).params.context.num_tickets == 1
    assert server_tls(server_certificate, ssl_session_tickets=False).params.context.num_tickets == 0


# -- ssl_session_ticket_key


def key_file(folder: Path, name: str, data: int) -> str:
    path = folder / name
    path.write_bytes(os.urandom(data))
    return str(path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("data", [48, 80])
def test_ticket_key_files_are_shared(
    server_certificate: Issued, tmp_path: Path, data: int, version: ssl.TLSVersion
) -> None:
    path = key_file(tmp_path, "key", data)
    one = server_tls(server_certificate, ssl_session_ticket_key=(path,))
    other = server_tls(server_certificate, ssl_session_ticket_key=(path,), key=bytes(80))
    assert is_resumed(one, other, version)
    assert not is_resumed(one, server_tls(server_certificate), version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("seals", "opens", "resumed"),
    [
        (("old",), ("new", "old"), True),  # after rotation, the old key still decrypts
        (("new", "old"), ("new",), True),  # the first key encrypts
        (("new", "old"), ("old",), False),
        (("old",), ("new", "short"), False),
        (("short", "old"), ("old", "new", "short"), True),
    ],
)
def test_first_key_encrypts_and_all_decrypt(
    server_certificate: Issued,
    tmp_path: Path,
    seals: tuple[str, ...],
    opens: tuple[str, ...],
    resumed: bool,
    version: ssl.TLSVersion,
) -> None:
    files = {name: key_file(tmp_path, name, data) for name, data in (("old", 80), ("new", 80), ("short", 48))}
    first = server_tls(server_certificate, ssl_session_ticket_key=tuple(files[name] for name in seals))
    second = server_tls(server_certificate, ssl_session_ticket_key=tuple(files[name] for name in opens))
    assert is_resumed(first, second, version) is resumed


@pytest.mark.parametrize("version", VERSIONS)
def test_ticket_of_older_key_is_renewed(
    server_certificate: Issued, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    old, new = key_file(tmp_path, "old", 80), key_file(tmp_path, "new", 80)
    context = client(version)
    _, session = connect_once(server_tls(server_certificate, ssl_session_ticket_key=(old,)), context)
    info, renewed = connect_once(
        server_tls(server_certificate, ssl_session_ticket_key=(new, old)), context, session=session
    )
    assert info.resumed
    again, _ = connect_once(
        server_tls(server_certificate, ssl_session_ticket_key=(new,)), context, session=renewed
    )
    assert again.resumed


def test_ticket_key_file_has_openssl_layout(server_certificate: Issued, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    from_file = server_tls(server_certificate, ssl_session_ticket_key=(str(path),), key=bytes(80))
    for version in VERSIONS:
        assert is_resumed(from_file, server_tls(server_certificate, key=KEY), version)
        assert is_resumed(server_tls(server_certificate, key=KEY), from_file, version)


@pytest.mark.parametrize("data", [0, 47, 64, 81])
def test_ticket_key_file_of_other_size_is_a_problem(
    server_certificate: Issued, tmp_path: Path, data: int
) -> None:
    good, bad = key_file(tmp_path, "good", 80), key_file(tmp_path, "bad", data)
    with pytest.raises(ConfigError) as caught:
        server_tls(server_certificate, ssl_session_ticket_key=(good, bad))
    assert str(caught.value) == f'servers[imap].ssl_session_ticket_key[1]: "{bad}" must be 48 or 80 bytes'


def test_missing_ticket_key_file_is_a_problem(server_certificate: Issued) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        server_tls(server_certificate, ssl_session_ticket_key=("/nonexistent",))


def test_ticket_key_repr_has_no_secret() -> None:
    printed = repr(TicketKey.parse(KEY))
    assert repr(KEY[16:48])[2:-1] not in printed
    assert repr(KEY[48:])[2:-1] not in printed


@pytest.mark.parametrize("length", [0, 47, 49, 79, 81])
def test_replace_with_bad_key_keeps_keys(length: int) -> None:
    keys = TicketKeys([KEY])
    with pytest.raises(ValueError, match=f"{length} bytes, where a ticket key has 48 or 80"):
        keys.replace([bytes(length)])
    with pytest.raises(ValueError, match="no ticket key"):
        keys.replace([])
    assert [key.name for key in keys.keys] == [KEY[:16]]


# -- rotation


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Workers:
    """Two workers whose ticket keys the supervisor rotates; the test chooses when each receives them."""

    def __init__(self, server_certificate: Issued, timeout: int) -> None:
        self.clock = Clock()
        self.rotation = KeyRotation(self.clock)
        self.timeout = timeout
        keys = self.rotation.of({timeout})[timeout]
        self.keys = TicketKeys(keys), TicketKeys(keys)
        self.tls = tuple(
            server_tls(server_certificate, key=keys, ssl_session_timeout=Seconds(timeout))
            for keys in self.keys
        )

    def after(self, seconds: float) -> None:
        self.clock.now += seconds
        self.rotation.rotate()

    def receives(self, *workers: int) -> None:
        for worker in workers:
            self.keys[worker].replace(self.rotation.all()[self.timeout])

    def sealed_by(self, worker: int) -> bytes:
        return self.keys[worker].keys[0].name


@pytest.mark.parametrize("version", VERSIONS)
def test_ticket_is_accepted_for_one_session_timeout(
    server_certificate: Issued, version: ssl.TLSVersion
) -> None:
    workers = Workers(server_certificate, 300)
    context = client(version)
    first = workers.sealed_by(0)
    _, session = connect_once(workers.tls[0], context)
    workers.after(299.0)
    workers.receives(0, 1)
    assert workers.sealed_by(0) == first
    workers.after(1.0)
    workers.receives(0, 1)
    assert workers.sealed_by(0) == workers.sealed_by(1) != first
    assert all(connect_once(tls, context, session=session)[0].resumed for tls in workers.tls)
    workers.after(300.0)
    workers.receives(0, 1)
    assert first not in {key.name for key in workers.keys[0].keys}
    assert not any(connect_once(tls, context, session=session)[0].resumed for tls in workers.tls)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("informed", [0, 1])
def test_workers_accept_each_others_tickets_during_rotation(
    server_certificate: Issued, version: ssl.TLSVersion, informed: int
) -> None:
    workers = Workers(server_certificate, 300)
    for _ in range(3):
        workers.after(300.0)
        workers.receives(informed)
        assert workers.sealed_by(0) != workers.sealed_by(1)
        context = client(version)
        for sealing, opening in ((0, 1), (1, 0)):
            _, session = connect_once(workers.tls[sealing], context)
            assert connect_once(workers.tls[opening], context, session=session)[0].resumed
        workers.receives(0, 1)


def test_ticket_of_previous_key_is_renewed(server_certificate: Issued) -> None:
    workers = Workers(server_certificate, 300)
    context = client(ssl.TLSVersion.TLSv1_2)
    _, session = connect_once(workers.tls[0], context)
    workers.after(300.0)
    workers.receives(0)
    info, renewed = connect_once(workers.tls[0], context, session=session)
    assert info.resumed
    workers.after(300.0)
    workers.receives(0)
    assert connect_once(workers.tls[0], context, session=renewed)[0].resumed


def test_rotated_keys_are_random_and_not_reused() -> None:
    clock = Clock()
    rotation = KeyRotation(clock)
    seen: list[bytes] = []
    for _ in range(50):
        keys = rotation.of({60, 300})
        assert all(len(key) == 80 and len(set(key)) > 20 for ring in keys.values() for key in ring)
        seen += [key for ring in keys.values() for key in ring if key not in seen]
        clock.now += rotation.wait()
        assert rotation.rotate()
    assert len({key[:16] for key in seen}) == len(seen) > 50


def test_rotation_interval_is_session_timeout() -> None:
    clock = Clock()
    rotation = KeyRotation(clock)
    before = rotation.of({60, 300})
    clock.now += 60.0
    assert rotation.rotate()
    after = rotation.of({60, 300})
    assert after[60] == (before[60][1], after[60][1], before[60][0])
    assert after[300] == before[300]
    assert not rotation.rotate()
    assert rotation.wait() == 60.0
    rotation.keep({300})
    assert rotation.all() == {300: before[300]}
    assert rotation.wait() == 240.0
    assert rotation.of({60})[60][0] not in after[60]


def test_reload_keeps_ticket_keys_and_their_age() -> None:
    clock = Clock()
    rotation = KeyRotation(clock)
    before = rotation.of({300})
    clock.now += 200.0
    assert rotation.of({300}) == before
    rotation.keep({300})
    assert rotation.wait() == 100.0


def test_ticket_keys_from_files_do_not_rotate(server_certificate: Issued, tmp_path: Path) -> None:
    tls: dict[str, Any] = {"listen": TLS_PORT, "ssl_certificate": (server_certificate.files,)}
    servers = (
        server(Protocol.IMAP, name="a", ssl_session_timeout=Seconds(60), **tls),
        server(Protocol.IMAP, name="b", ssl_session_timeout=Seconds(61), ssl_session_tickets=False, **tls),
        server(
            Protocol.IMAP, name="c", ssl_session_timeout=Seconds(62), ssl_session_ticket_key=("k",), **tls
        ),
        server(Protocol.IMAP, name="d", ssl_session_timeout=Seconds(63)),
    )
    assert rotated_timeouts(ProxyConfig(servers=servers)) == {60}


def test_ticket_keys_from_files_are_used_during_rotation(server_certificate: Issued, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    keys = TicketKeys.random()
    tls = server_tls(server_certificate, key=keys, ssl_session_ticket_key=(str(path),))
    context = client(ssl.TLSVersion.TLSv1_3)
    _, session = connect_once(tls, context)
    keys.replace([os.urandom(80)])
    assert connect_once(tls, context, session=session)[0].resumed


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_client_resumes_after_rotation_with_other_worker(
    server_certificate: Issued, tmp_path: Path, version: str
) -> None:
    workers = Workers(server_certificate, 300)
    session = str(tmp_path / "session")
    with serve_tls(workers.tls[0]) as port:
        assert "resumed=False" in s_client(port, version, "-sess_out", session)
    workers.after(300.0)
    workers.receives(0, 1)
    with serve_tls(workers.tls[1]) as port:
        assert "resumed=True" in s_client(port, version, "-sess_in", session)
    workers.after(300.0)
    workers.receives(0, 1)
    with serve_tls(workers.tls[1]) as port:
        assert "resumed=False" in s_client(port, version, "-sess_in", session)


# -- other processes, and openssl s_client


def serve_once(paths: tuple[str, str], pipe: Any) -> None:
    """A worker process: sends its port through the pipe, and serves until it is stopped."""
    from mailproxy.tls.context import build
    from mailproxy_config.model import CertificateFiles

    config = server(
        Protocol.IMAP,
        listen=TLS_PORT,
        ssl_certificate=(CertificateFiles(certificate=paths[0], key=paths[1]),),
    )
    with serve_tls(build(config, ticket_keys=TicketKeys([KEY]))) as port:
        pipe.send(port)
        pipe.recv()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_client_resumes_in_other_process(
    server_certificate: Issued, tmp_path: Path, version: str
) -> None:
    fresh = multiprocessing.get_context("spawn")
    near, far = fresh.Pipe()
    worker = fresh.Process(
        target=serve_once, args=((server_certificate.files.certificate, server_certificate.files.key), far)
    )
    worker.start()
    try:
        session = str(tmp_path / "session")
        with serve_tls(server_tls(server_certificate)) as port:
            assert "resumed=False" in s_client(port, version, "-sess_out", session)
        assert "resumed=True" in s_client(near.recv(), version, "-sess_in", session)
    finally:
        near.send(None)
        worker.join()
        near.close()
        far.close()


def test_openssl_client_reconnects_and_resumes(server_certificate: Issued) -> None:
    with serve_tls(server_tls(server_certificate)) as port:
        output = s_client(port, "-tls1_2", "-reconnect")
    assert output.count("Reused, TLSv1.2") == 5
    assert output.count("New, TLSv1.2") == 1


def s_client(port: int, *options: str) -> str:
    """The output of ``openssl s_client``."""
    command = ["openssl", "s_client", "-ign_eof", "-connect", f"127.0.0.1:{port}", *options]
    return subprocess.run(
        command, capture_output=True, timeout=20, stdin=subprocess.DEVNULL, check=False
    ).stdout.decode()
