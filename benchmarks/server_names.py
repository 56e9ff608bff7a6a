# SPDX-License-Identifier: Apache-2.0
"""Memory and time of many certificates that clients choose by name, in one process.

``python -m benchmarks.server_names [NUMBER]`` makes so many certificates (10,000), loads them as a
worker does, asks for 2,000 of them, renews one, and compares handshakes with those of one certificate.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mailproxy.tls.connection import HandshakeStep
from mailproxy.tls.context import ServerTls, build
from mailproxy.tls.resumption import KEY_BYTES, TicketKeys
from mailproxy_config.model import ServerConfig

_ASKED = 2000
_ROUNDS = 400
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def handshake(tls: ServerTls, context: ssl.SSLContext, host: str) -> float:
    """Perform one handshake, and return the CPU seconds of both sides."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    started = time.process_time()
    server = tls.accept(far)
    client = context.wrap_socket(near, server_hostname=host, do_handshake_on_connect=False)
    is_client_done, step = False, HandshakeStep.WANT_READ
    while not is_client_done or step is not HandshakeStep.DONE:
        try:
            client.do_handshake()
            is_client_done = True
        except ssl.SSLWantReadError:
            pass
        step = server.handshake()
    seconds = time.process_time() - started
    client.close()
    server.close()
    return seconds


def main(number: int) -> None:
    """Print one line for each measurement."""
    # A folder of the tests has the certification authority.
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from mailproxy_config.model import Protocol  # noqa: PLC0415
    from support.configs import server  # noqa: PLC0415
    from support.tls_authority import Authority  # noqa: PLC0415
    from support.tls_peers import TLS_PORT, client_context  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder)
        default = authority.issue(names=["default.example"])
        for position in range(number):
            issued = authority.issue(names=[f"t{position}.example"])
            directory = folder / "selected" / f"{position:05}"
            directory.mkdir(parents=True)
            os.rename(issued.files.certificate, directory / "tls.crt")
            os.rename(issued.files.key, directory / "tls.key")
        one: ServerConfig = server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=(default.files,))
        many = dataclasses.replace(one, ssl_certificate_selector=str(folder / "selected"))
        keys = TicketKeys([bytes(KEY_BYTES)])
        single = build(one, ticket_keys=keys)
        before, started = resident_bytes(), time.process_time()
        tls = build(many, ticket_keys=keys, is_checked=True)
        print(f"load in a worker: {number} certificates in {time.process_time() - started:.2f} s CPU")
        print(f"memory of the table: {(resident_bytes() - before) / 2**20:.0f} MiB")
        context = client_context()
        first = [handshake(tls, context, f"t{position}.example") for position in range(min(number, _ASKED))]
        print(f"memory after {len(first)} names: {(resident_bytes() - before) / 2**20:.0f} MiB")
        print(f"resident memory of the process: {resident_bytes() / 2**20:.0f} MiB")
        print(f"first handshake for a name: {median(first) * 1000:.2f} ms CPU, both sides")
        last = f"t{min(number, _ASKED) - 1}.example"
        pairs = [
            (handshake(single, context, last), handshake(tls, context, last), handshake(tls, context, "x.y"))
            for _ in range(_ROUNDS)
        ]
        for position, what in enumerate(("one certificate", "chosen by name", "default of many")):
            print(
                f"handshake, {what}: {median(each[position] for each in pairs) * 1000:.2f} ms CPU, both sides"
            )
        started = time.process_time()
        renewed = authority.issue(names=["t0.example"])
        os.replace(renewed.files.certificate, folder / "selected" / "00000" / "tls.crt")
        os.replace(renewed.files.key, folder / "selected" / "00000" / "tls.key")
        build(many, ticket_keys=keys, previous=tls, is_checked=True)
        print(f"reload with one renewed certificate: {time.process_time() - started:.2f} s CPU")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
