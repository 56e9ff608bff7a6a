"""nginx with its mail module: what this proxy is measured by."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.servers.programs import Running

_MODULES: Final = (
    "/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules", "/etc/nginx/modules",
)  # fmt: skip

_CONFIGURATION: Final = """
{load_module}
daemon off;
worker_processes 1;
user {user};
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ worker_connections 512; }}
mail {{
{mail}
}}
"""


@dataclass
class Nginx:
    """A running nginx."""

    folder: Path
    running: Running


def start(path: str, folder: Path, mail: str, ports: list[int]) -> Nginx:
    """Start it, and wait until it listens.

    Args:
        path: The program.
        folder: An empty folder.
        mail: What stands in its ``mail`` block.
        ports: Where that makes it listen.
    """
    configuration = _CONFIGURATION.format(
        load_module=_load_module(),
        folder=folder,
        mail=mail,
        user="nobody nogroup" if _has_nogroup() else "nobody",
    )
    (folder / "nginx.conf").write_text(configuration)
    command = [path, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    nginx = Nginx(folder, Running(command, output=folder / "output"))
    try:
        nginx.running.answers(*ports)
    except AssertionError:
        nginx.running.stop()
        raise
    return nginx


def _load_module() -> str:
    """Nothing, where the mail module is part of the program."""
    for folder in _MODULES:
        if os.path.exists(f"{folder}/ngx_mail_module.so"):
            return f"load_module {folder}/ngx_mail_module.so;"
    return ""


def _has_nogroup() -> bool:
    return "nogroup:" in Path("/etc/group").read_text()
