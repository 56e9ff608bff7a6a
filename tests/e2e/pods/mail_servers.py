# SPDX-License-Identifier: Apache-2.0
"""IMAP, POP3 and SMTP servers of the end-to-end tests, and an HTTP server that returns what they received.

It runs in a pod, with the standard library only.  They accept every login: the
authentication service has checked the password.  ``GET /`` on port 8000 returns
``{"logins": [...], "messages": [...]}`` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys

PORTS = {"imap": 1143, "pop3": 1110, "smtp": 1025}
CONTROL_PORT = 8000
LITERAL = re.compile(rb"\{(\d+)\}\r\n$")
GREETINGS = {"imap": b"* OK ready\r\n", "pop3": b"+OK ready\r\n", "smtp": b"220 upstream.test ESMTP\r\n"}

logins: list[dict[str, str]] = []
messages: list[dict[str, str]] = []


async def serve_imap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each command with OK; a command may have literals."""
    while line := await reader.readline():
        command = line
        while literal := LITERAL.search(line):
            writer.write(b"+ ready\r\n")
            await writer.drain()
            command += await reader.readexactly(int(literal[1]))
            line = await reader.readline()
            command += line
        tag, _, rest = command.partition(b" ")
        if rest.upper().startswith(b"LOGIN"):
            logins.append({"protocol": "imap", "user": rest.decode("latin-1")})
        writer.write(tag + b" OK completed\r\n")
        await writer.drain()


async def serve_pop3(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each command with +OK."""
    while line := await reader.readline():
        if line.upper().startswith(b"USER"):
            logins.append({"protocol": "pop3", "user": line[5:].decode("latin-1").strip()})
        writer.write(b"+OK\r\n")
        await writer.drain()


async def serve_smtp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept messages; a message is recorded when its last line has arrived."""
    attributes = ""
    while line := await reader.readline():
        word = line.split()[0].upper() if line.split() else b""
        if word == b"XCLIENT":
            attributes = line.decode("latin-1").strip()
            logins.append({"protocol": "smtp", "user": attributes})
            writer.write(GREETINGS["smtp"])
        elif word == b"DATA":
            writer.write(b"354 go ahead\r\n")
            await writer.drain()
            content = b""
            while (line := await reader.readline()) != b".\r\n":
                if not line:
                    return
                content += line
            messages.append({"client": attributes, "content": content.decode("latin-1")})
            writer.write(b"250 2.0.0 stored\r\n")
        else:
            writer.write(b"250 2.0.0 OK\r\n")
        await writer.drain()


async def serve_control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one HTTP request."""
    await reader.readuntil(b"\r\n\r\n")
    body = json.dumps({"logins": logins, "messages": messages}).encode()
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    head = "\r\n".join([*lines, "Connection: close", "", ""])
    writer.write(head.encode() + body)
    await writer.drain()


SERVERS = {"imap": serve_imap, "pop3": serve_pop3, "smtp": serve_smtp}


async def serve(protocol: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    try:
        if protocol == "control":
            await serve_control(reader, writer)
            return
        writer.write(GREETINGS[protocol])
        await SERVERS[protocol](reader, writer)
    except (OSError, asyncio.IncompleteReadError):
        pass  # the client has closed the connection
    finally:
        writer.close()


async def main() -> None:
    """Listen on all ports until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    for protocol, port in {**PORTS, "control": CONTROL_PORT}.items():
        await asyncio.start_server(lambda *streams, of=protocol: serve(of, *streams), "0.0.0.0", port)
    await stopped.wait()
    sys.exit(0)


if __name__ == "__main__":
    asyncio.run(main())
