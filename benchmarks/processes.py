# SPDX-License-Identifier: Apache-2.0
"""The processes of a measurement, and their CPU time and memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.clients import Scene

PROXY_CPU: Final = "0"
LOAD_CPU: Final = "1"
_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_mail_module.so")
_ROOT: Final = Path(__file__).resolve().parent.parent
LISTENERS: Final = ("imap", "pop3", "smtp", "imaps", "pop3s", "smtps", "rsa")
"""The ports each proxy listens on; ``rsa`` is IMAP with TLS and an RSA certificate, the rest are ECDSA."""
PEERS: Final = ("auth", "imap", "bare", "pop3", "smtp")


class MissingProgram(Exception):
    """A required program is not installed."""


@dataclass
class Ports:
    """The ports, which are fixed and outside the ephemeral range."""

    base: int = 24000

    def peer(self, name: str) -> int:
        """A peer's port."""
        return self.base + PEERS.index(name)

    def proxy(self, proxy: str, name: str) -> int:
        """A proxy's port."""
        return self.base + {"nginx": 20, "mailproxy": 40}[proxy] + LISTENERS.index(name)


PORTS: Final = Ports()


def pinned(cpu: str, *command: str, **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401 - as Popen has them
    """Start a process on one processor (on any, where ``cpu`` is empty or there is but one)."""
    pin = ["taskset", "-c", cpu] if cpu and (os.cpu_count() or 1) > 1 else []
    return subprocess.Popen([*pin, *command], text=True, cwd=_ROOT, **options)


def stop(process: subprocess.Popen[str]) -> None:
    """Terminate a process that was started here, and wait for it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def raise_open_files_limit() -> int:
    """Raise the limit of open files, for this process and its children; returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, 65536)
    for limit in (wanted, hard):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit
    return hard


@dataclass
class Proxy:
    """A proxy under measurement: the processes whose figures count are its workers."""

    name: str
    process: subprocess.Popen[str]
    workers: tuple[int, ...] = ()

    def cpu(self) -> float:
        """Seconds of processor time that its workers have used, from the scheduler."""
        return sum(map(cpu_of, self.workers))

    def supervisor_cpu(self) -> float:
        """The same of the process that started the workers."""
        return cpu_of(self.process.pid)

    def rss(self) -> int:
        """Bytes of memory of its workers (``Pss``: a shared page counts in part)."""
        return sum(map(pss_of, self.workers))

    def stop(self) -> None:
        """Terminate it."""
        stop(self.process)


def cpu_of(pid: int) -> float:
    """Seconds of processor time a process has used, threads included."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


def pss_of(pid: int) -> int:
    """Bytes of a process's memory, each shared page divided by its owners."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Pss of {pid}")


def children(pid: int) -> tuple[int, ...]:
    """The child processes of a process, in the order of their start."""
    return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


class LoadProcess:
    """The process of the clients."""

    def __init__(self, python: str) -> None:
        self.process = pinned(
            LOAD_CPU, python, "-m", "benchmarks.clients", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def do(self, what: str, scene: Scene, *, keep: bool = False, **how: object) -> dict[str, float]:
        """Run a command of a client group; ``keep`` keeps the group for the next command."""
        order = {"do": what, "scene": asdict(scene), "keep": keep, "with": how}
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the clients ended with {self.process.wait()} at {order}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Terminate it."""
        stop(self.process)


@dataclass
class Bench:
    """Everything that a measurement needs, running.

    Attributes:
        peers: The process identifier of the upstreams and the authentication service.
        proxies: ``nginx`` and ``mailproxy``, by name, in the order they are measured in.
    """

    folder: Path
    python: str
    load: LoadProcess
    stub_servers: int
    proxies: dict[str, Proxy] = field(default_factory=dict)

    def restart(self, name: str, *, workers: int = 1, options: tuple[str, ...] = (), path: str = "") -> Proxy:
        """Start or restart a proxy; ``path`` is a directory of modules for mailproxy."""
        if name in self.proxies:
            self.proxies[name].stop()
        if name == "nginx":
            proxy = start_nginx(self.folder, workers)
        else:
            proxy = start_mailproxy(self.folder, self.python, workers, options, path)
        self.proxies[name] = proxy
        return proxy

    def load_cpu(self) -> float:
        """Seconds of processor time that clients and stub servers, which share a processor."""
        return cpu_of(self.load.process.pid) + cpu_of(self.stub_servers)

    def scene(self, proxy: Proxy, name: str, **how: Any) -> Scene:  # noqa: ANN401 - as Scene has them
        """A scene at a proxy: ``imaps`` is IMAP with implicit TLS, and so on."""
        is_tls = name in {"imaps", "pop3s", "smtps", "rsa"}
        protocol = "imap" if name == "rsa" else name.removesuffix("s") if is_tls else name
        return Scene(protocol, PORTS.proxy(proxy.name, name), **({"tls": "implicit"} if is_tls else {}) | how)


@contextmanager
def bench(python: str) -> Iterator[Bench]:
    """Start stub servers and clients; measurements start the proxies."""
    if shutil.which("nginx") is None:
        raise MissingProgram("nginx, with its mail module (Debian: nginx-core libnginx-mod-mail)")
    raise_open_files_limit()
    with tempfile.TemporaryDirectory(prefix="mailproxy-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        make_certificates(folder)
        stub_servers = pinned(
            LOAD_CPU, python, "-m", "benchmarks.stub_servers", *(str(PORTS.peer(peer)) for peer in PEERS)
        )
        load = LoadProcess(python)
        made = Bench(folder, python, load, stub_servers.pid)
        try:
            wait_for(PORTS.peer("smtp"), stub_servers)
            yield made
        finally:
            for proxy in made.proxies.values():
                proxy.stop()
            load.stop()
            stop(stub_servers)


def start_nginx(folder: Path, workers: int) -> Proxy:
    """Start nginx."""
    (folder / "nginx.conf").write_text(nginx_conf(folder, "nginx", workers))
    process = pinned(
        PROXY_CPU if workers == 1 else "", "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")
    )
    wait_for(PORTS.proxy("nginx", "smtps"), process, folder / "nginx.error")
    return Proxy("nginx", process, _workers(process.pid, "worker process", workers))


def start_mailproxy(folder: Path, python: str, workers: int, options: tuple[str, ...], path: str) -> Proxy:
    """Start mailproxy, with the same configuration."""
    conf = nginx_conf(folder, "mailproxy", workers)
    return start_with_conf(folder, python, conf, PORTS.proxy("mailproxy", "smtps"), workers, options, path)


def start_with_conf(
    folder: Path,
    python: str,
    conf: str,
    last_port: int,
    workers: int = 1,
    options: tuple[str, ...] = (),
    path: str = "",
) -> Proxy:
    """Start mailproxy with an ``nginx.conf``, and wait until its last listener is open."""
    (folder / "mailproxy.conf").write_text(conf)
    modules = [*([str(_ROOT / path)] if path else []), str(_ROOT / "proxy"), *sys.path[1:]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(modules)}
    with open(folder / "mailproxy.log", "a", encoding="utf-8") as log:
        process = pinned(
            PROXY_CPU if workers == 1 else "",
            python, "-m", "mailproxy", "run", "-f", str(folder / "mailproxy.conf"),
            "--workers", str(workers), "--admin", f"127.0.0.1:{PORTS.base + 60}", *options,
            stderr=log, env=environment,
        )  # fmt: skip
    wait_for(last_port, process, folder / "mailproxy.log")
    found = _workers(process.pid, "mailproxy-work", workers)
    time.sleep(0.5)
    return Proxy("mailproxy", process, found)


def _workers(parent: int, word: str, count: int) -> tuple[int, ...]:
    for _ in range(200):
        found = tuple(pid for pid in children(parent) if word in _command(pid))
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise RuntimeError(f"{parent} has not started {count} workers")


def _command(pid: int) -> str:
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return name + " " + Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def nginx_conf(folder: Path, proxy: str, workers: int) -> str:
    """Return the configuration of both: everything enabled but DNS lookups."""
    servers = []
    for name in LISTENERS:
        is_tls = name in {"imaps", "pop3s", "smtps", "rsa"}
        protocol = "imap" if name == "rsa" else name.removesuffix("s") if is_tls else name
        listen = f"listen 127.0.0.1:{PORTS.proxy(proxy, name)}{' ssl' if is_tls else ''};"
        kind = "rsa" if name == "rsa" else "ecdsa"
        tls = f"ssl_certificate {folder}/{kind}.crt; ssl_certificate_key {folder}/{kind}.key;"
        servers.append(f"  server {{ {listen} protocol {protocol}; starttls on; {tls} }}")
    module = f"load_module {_MODULE};\n" if _MODULE.exists() and proxy == "nginx" else ""
    limit = raise_open_files_limit()
    return (
        f"{module}daemon off;\nworker_processes {workers};\nworker_rlimit_nofile {limit};\n"
        f"error_log {folder}/{proxy}.error error;\npid {folder}/{proxy}.pid;\n"
        "events { worker_connections 40000; }\n"
        f"mail {{\n  server_name mail.example.com;\n  auth_http 127.0.0.1:{PORTS.peer('auth')}/auth;\n"
        "  smtp_auth plain login;\n  ssl_session_cache shared:SSL:10m;\n  ssl_protocols TLSv1.2 TLSv1.3;\n"
        + "\n".join(servers)
        + "\n}\n"
    )


def make_certificates(folder: Path) -> None:
    """Make a certificate and a key of each kind."""
    for kind, key in (("ecdsa", ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")), ("rsa", ("rsa:2048",))):
        command = ["openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=mail.example.com"]
        files = ["-newkey", *key, "-keyout", str(folder / f"{kind}.key"), "-out", str(folder / f"{kind}.crt")]
        subprocess.run([*command, *files], check=True, capture_output=True)
        (folder / f"{kind}.key").chmod(0o644)


def wait_for(
    port: int, process: subprocess.Popen[Any], log: Path | None = None, seconds: float = 10.0
) -> None:
    """Wait until a process listens; raises with the end of its log where it does not."""
    for _ in range(int(seconds / 0.05)):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
        if process.poll() is not None:
            break
    output = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log and log.exists() else ""
    code = process.poll()
    end = "is still running" if code is None else f"ended with {code}"
    raise RuntimeError(f"no process listens on {port}: {process.args!r} {end}\n{output}".rstrip())
