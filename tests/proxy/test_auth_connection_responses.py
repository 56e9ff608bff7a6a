# SPDX-License-Identifier: Apache-2.0
"""Responses on connections to a service that has sent others before, in any pieces."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.auth_http.connection import AuthConnection
from mailproxy.auth_http.pending_request import PendingRequest
from mailproxy.context import WorkerContext
from mailproxy.dns import HostAddresses
from mailproxy.enums import Method
from mailproxy.errors import AuthUnavailable
from mailproxy.loop.epoll import READ
from mailproxy.loop.worker_loop import make_loop
from mailproxy.protocols.types import AuthRequest, Client, Credentials, Secret
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import Protocol
from support.configs import server

STATUS = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 408 Late", b"Auth-Pass: first"]
)
USUAL = st.sampled_from(
    [
        [b"Auth-Status: OK", b"Auth-Server: 192.0.2.1", b"Auth-Port: 143"],
        [b"Auth-Status: OK", b"Auth-Server: 192.0.2.1", b"Auth-Port: 143", b"Auth-Pass: a secret"],
        [b"Auth-Server: 192.0.2.2", b"auth-pass:other", b"Auth-Port: 143"],
        [b"Auth-Status: no"],
        [b"Auth-Status: WAIT", b"Auth-Wait: 2"],
    ]
)
OTHER = st.sampled_from(
    [b"Auth-User: bob", b"Auth-Pass: \t", b"Auth-Pass:", b"Auth-Port: x", b"Connection: close",
     b"Auth-SMTP: no", b"Transfer-Encoding: chunked", b"Auth-Wait: 3", b"Auth-Cache: no-store",
     b"X-MailProxy-Timeout: 3", b"X-MailProxy-Timeout: 4", b"X-MailProxy-Nothing: 1",
     b"X-Pass: a", b"not a header", b"X: a\rb", b""]
)  # fmt: skip
REST = st.sampled_from(
    [
        b"",
        b"",
        b"OK",
        b"OKOK",
        b"0\r\n\r\n",
        b"2\r\nOK\r\n0\r\n\r\n",
        b"Auth-Pass: x\r\n",
        b"\nAuth-Pass: x\r\n\r\n",
    ]
)
INTERIM = st.sampled_from([b"", b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
RESPONSES = st.builds(
    lambda interim, status, usual, others, size, end, rest: (
        interim + b"".join(line + end for line in (status, *usual, *others, *size, b"")) + rest
    ),
    INTERIM,
    STATUS,
    USUAL,
    st.lists(OTHER, max_size=1),
    st.sampled_from([[], [b"Content-Length: 0"], [b"Content-Length: 2"]]),
    st.sampled_from([b"\r\n", b"\r\n", b"\n"]),
    REST,
)


class Worker:
    """A worker's client of one service; its connections are socket pairs, whose other ends the test has."""

    def __init__(self) -> None:
        self.loop = make_loop()
        metrics = WorkerMetrics()
        self.context = WorkerContext(self.loop, self.loop.epoll, log=Log(2), metrics=metrics)
        config = server(Protocol.SMTP, auth_http_overrides=True)
        assert config.auth_http is not None
        addresses = HostAddresses(config.auth_http, metrics=metrics)
        self.service = AuthHttpClient(self.context, addresses, 60.0)
        self.durations = metrics.protocol(Protocol.SMTP).auth_seconds
        self.server = config
        self.far = socket.socket()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        for each in [*self.service.connections]:
            each.close()
        self.service.close()
        self.context.epoll.run_deferred()
        self.far.close()
        self.context.log.close(0.0)
        self.loop.close()

    def connection(self) -> AuthConnection:
        """Return the idle connection, or a new one."""
        if self.service.idle:
            return self.service.idle[0]
        self.far.close()
        sock, self.far = socket.socketpair()
        sock.setblocking(False)
        made = AuthConnection(self.service)
        made.sock, made.fd, made.is_open = sock, sock.fileno(), True
        made.target = (socket.AF_UNIX, "service")
        self.context.epoll.add(made.fd, made, READ)
        self.service.connections.add(made)
        self.service.idle.append(made)
        return made

    def ask(self, pieces: Sequence[bytes]) -> tuple[object, ...]:
        """Send a request; return the result, the head, and whether the connection is kept or free."""
        results: list[object] = []
        credentials = Credentials(Method.PLAIN, b"alice", Secret(b"guess"))
        request = PendingRequest(
            results.append,
            b"GET",
            AuthRequest(credentials, 1, Client("192.0.2.1")),
            self.server,
            self.durations,
            self.context.epoll.now,
            SessionRecord(),
        )
        request.is_repeated = True  # so that it is not sent again
        used = self.connection()
        self.service.send(request)
        self.context.epoll.run_deferred()
        for piece in pieces:
            if used.is_open:
                self.far.send(piece)
                used.on_event(READ)
                self.context.epoll.run_deferred()
        self.service.cancel(request)  # unless the response was complete
        assert not self.service.requests
        if used not in self.service.idle:  # nothing, or the rest of a body, would have to come
            used.close()
        self.context.epoll.run_deferred()
        outcome = [
            (str(each), each.failure) if isinstance(each, AuthUnavailable) else each for each in results
        ]
        return outcome, request.head, used.is_open


ALLOWED = b"Auth-Server: 192.0.2.1\r\nAuth-Port: 143\r\n\r\n"


@given(st.lists(st.tuples(RESPONSES, st.sets(st.integers(1, 200), max_size=2)), min_size=1, max_size=4))
@example([(ALLOWED, set()), (b"Auth-Server: 192.0.2.1\r\nAuth-Pass: a\tb\r\nAuth-Port: 143\r\n\r\n", set())])
@example([(ALLOWED, set()), (ALLOWED + b"Auth-Pass: b\r\n", set())])
@example([(ALLOWED, set()), (b"not a header\r\n" + ALLOWED, {14})])
def test_response_means_the_same_in_pieces_and_after_others(sent: list[tuple[bytes, set[int]]]) -> None:
    with Worker() as used:
        for response, cuts in [*sent, *sent]:
            bounds = [0, *sorted(cut for cut in cuts if cut < len(response)), len(response)]
            pieces = [response[start:end] for start, end in pairwise(bounds)]
            with Worker() as fresh:
                assert used.ask(pieces) == fresh.ask([response])
        assert "secret" not in repr(used.service.heads.known)
