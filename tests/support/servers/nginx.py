# SPDX-License-Identifier: Apache-2.0
"""nginx as a mail proxy, for comparison, and as a web server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.parity.compared_programs import Nginx as Program
from support.servers.auth_service import AuthService
from support.servers.certificates import Certificates
from support.servers.programs import Ports, Running

_CONFIGURATION: Final = """
{load_module}
daemon off;
worker_processes 1;
user {user};
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ worker_connections 512; }}
{block}
"""

_METHODS: Final = """
server_name front.example.org;
timeout 20s;
proxy_pass_error_message on;
imap_auth plain login cram-md5;
pop3_auth plain apop cram-md5;
smtp_auth plain login cram-md5;
ssl_certificate {certificate};
ssl_certificate_key {key};
"""
_SERVERS: Final = {
    "imap": ("imap", "starttls on;"),
    "pop3": ("pop3", "starttls on;"),
    "smtp": ("smtp", "starttls on; xclient on;"),
    "smtp-bare": ("smtp", "xclient off;"),
    "submission": ("smtp", "xclient off; proxy_smtp_auth on;"),
    "submission-x": ("smtp", "xclient on; proxy_smtp_auth on;"),
    "mx": ("smtp", "xclient on; smtp_auth none;"),
}
"""Server blocks as in ``shared_proxy.py``, with the same names."""


@dataclass
class Nginx:
    """A running nginx, and its ports by listener."""

    folder: Path
    ports: dict[str, int]
    running: Running


def start_mail(
    program: Program, folder: Path, service: AuthService, certificates: Certificates, ports: Ports
) -> Nginx:
    """Start nginx as a mail proxy.

    Args:
        program: nginx with its mail module.
        folder: An empty folder.
        service: The authentication service.
        certificates: The certificates of its server blocks with TLS.
        ports: The allocator of ports.
    """
    own = certificates.proxy
    blocks = [_METHODS.format(certificate=f'"{own.certificate}"', key=f'"{own.key}"')]
    ports_by_listener: dict[str, int] = {}
    for name, (protocol, directives) in _SERVERS.items():
        listen = [_listen(ports_by_listener, name, ports)]
        if "starttls" in directives:
            listen.append(_listen(ports_by_listener, f"{name}s", ports, " ssl"))
        auth_http = f"auth_http {service.url(f'/{name}')};"
        blocks.append(f"server {{ protocol {protocol}; {' '.join(listen)} {auth_http} {directives} }}")
    block = "mail {\n" + "\n".join(blocks) + "\n}"
    return _start(program.path, folder, block, ports_by_listener, program.load)


def start_http(path: str, folder: Path, server: str, ports: Ports) -> Nginx:
    """Start nginx as a web server with one ``server`` block; the name of its port is ``http``."""
    ports_by_listener: dict[str, int] = {}
    listen = _listen(ports_by_listener, "http", ports)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    block = f"http {{ access_log off; default_type text/html; {paths} server {{ {listen} {server} }} }}"
    return _start(path, folder, block, ports_by_listener)


def _start(
    path: str, folder: Path, block: str, ports_by_listener: dict[str, int], load_module: str = ""
) -> Nginx:
    """Start nginx, and wait until it listens."""
    configuration = _CONFIGURATION.format(
        load_module=load_module,
        folder=folder,
        block=block,
        user="nobody nogroup" if _has_nogroup() else "nobody",
    )
    (folder / "nginx.conf").write_text(configuration)
    command = [path, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    nginx = Nginx(folder, ports_by_listener, Running(command, output=folder / "output"))
    try:
        nginx.running.wait_for_ports(*ports_by_listener.values())
    except AssertionError:
        nginx.running.stop()
        raise
    return nginx


def _listen(ports_by_listener: dict[str, int], listener: str, ports: Ports, parameter: str = "") -> str:
    ports_by_listener[listener] = ports.take()
    return f"listen 127.0.0.1:{ports_by_listener[listener]}{parameter};"


def _has_nogroup() -> bool:
    return "nogroup:" in Path("/etc/group").read_text()
