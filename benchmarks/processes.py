# SPDX-License-Identifier: Apache-2.0
"""The processes of a measurement, and their CPU time and memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import dovecot, haproxy
from benchmarks.clients import Scene
from benchmarks.procfs import children, command, cpu_of, descendants, pss_of

PROXY_CPU: Final = "0"
LOAD_CPU: Final = "1"
_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_mail_module.so")
_ROOT: Final = Path(__file__).resolve().parent.parent
LISTENERS: Final = ("imap", "pop3", "smtp", "imaps", "pop3s", "smtps", "rsa")
"""The ports each proxy listens on; ``rsa`` is IMAP with TLS and an RSA certificate, the rest are ECDSA."""
PEERS: Final = ("auth", "imap", "bare", "pop3", "smtp")


PACKAGES: Final = {
    "nginx": "nginx-core libnginx-mod-mail",
    "dovecot": dovecot.PACKAGES,
    "haproxy": haproxy.PACKAGES,
}
"""The Debian packages of each program that is compared with."""
ALL: Final = (*PACKAGES, "mailproxy")
"""All proxies, in the order they are measured in."""


class MissingProgram(Exception):
    """A program is not installed, does not start, or has no port; the text has what to do."""


@dataclass
class Ports:
    """The ports, which are fixed and outside the ephemeral range."""

    base: int = 24000

    def peer(self, name: str) -> int:
        """A peer's port."""
        return self.base + PEERS.index(name)

    def proxy(self, proxy: str, name: str) -> int:
        """A proxy's port."""
        first = {"nginx": 20, "mailproxy": 40, "dovecot": 120, "haproxy": 140}[proxy]
        return self.base + first + LISTENERS.index(name)

    def proxies(self, proxy: str, names: Sequence[str]) -> dict[str, int]:
        """The ports of a proxy, by the name of the listener."""
        return {name: self.proxy(proxy, name) for name in names}


PORTS: Final = Ports()


def pinned(cpu: str, *command: str, **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401 - as Popen has them
    """Start a process on one processor (on any, where ``cpu`` is empty or there is but one)."""
    pin = ["taskset", "-c", cpu] if cpu and (os.cpu_count() or 1) > 1 else []
    return subprocess.Popen([*pin, *command], text=True, cwd=_ROOT, **options)


def stop(process: subprocess.Popen[str], signum: int = signal.SIGTERM) -> None:
    """Terminate a process that was started here, and wait for it."""
    process.send_signal(signum)
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
    """A proxy under measurement.

    Attributes:
        workers: The processes whose figures count; if there are none given, all
            processes of the program count (Dovecot, whose login, authentication
            and anvil processes all take part in a login).
    """

    name: str
    process: subprocess.Popen[str]
    workers: tuple[int, ...] = ()

    def counted(self) -> tuple[int, ...]:
        """The processes whose figures count."""
        return self.workers or descendants(self.process.pid)

    def cpu(self) -> float:
        """Seconds of processor time that these have used, from the scheduler."""
        return sum(map(cpu_of, self.counted()))

    def supervisor_cpu(self) -> float:
        """The same of the process that started the workers."""
        return cpu_of(self.process.pid)

    def rss(self) -> int:
        """Bytes of memory of these (``Pss``: a shared page counts in part)."""
        return sum(map(pss_of, self.counted()))

    def stop(self) -> None:
        """Terminate it; ``SIGINT`` leaves out the proxy's ``drain.delay``."""
        stop(self.process, signal.SIGINT if self.name == "mailproxy" else signal.SIGTERM)


class LoadProcess:
    """The process of the clients."""

    def __init__(self) -> None:
        words = (sys.executable, "-m", "benchmarks.clients")
        self.process = pinned(LOAD_CPU, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def do(self, what: str, scene: Scene, *, keep: bool = False, **how: object) -> dict[str, float]:
        """Run a command of a client group; ``keep`` keeps the group for the next command."""
        self.begin(what, scene, keep=keep, **how)
        return self.end()

    def begin(self, what: str, scene: Scene, *, keep: bool = False, **how: object) -> None:
        """Start a command."""
        order = {"do": what, "scene": asdict(scene), "keep": keep, "with": how}
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()

    def end(self) -> dict[str, float]:
        """Wait for the report of the command that was started."""
        stdout = self.process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the clients ended with {self.process.wait()}")
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
        proxies: Those that run, by name.
        missing: What is to install, for each program that does not run.
    """

    folder: Path
    python: str
    load: LoadProcess
    stub_servers: int
    proxies: dict[str, Proxy] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def start(self, names: Sequence[str], *, workers: int = 1) -> list[str]:
        """Start or restart proxies; returns the names of those that run, and stops all others.

        What a program that does not run needs is in ``missing`` and on standard
        error; only ``mailproxy`` must start.
        """
        for name in [name for name in self.proxies if name not in names]:
            self.proxies.pop(name).stop()
        for name in names:
            if name in self.missing:
                continue
            try:
                self.restart(name, workers=workers)
            except MissingProgram as missing:
                self.missing[name] = str(missing)
                print(f"{name}: {missing}", file=sys.stderr)
        return [name for name in ALL if name in self.proxies]

    def restart(self, name: str, *, workers: int = 1, options: tuple[str, ...] = (), path: str = "") -> Proxy:
        """Start or restart a proxy; ``path`` is a directory of modules for mailproxy."""
        if name in self.proxies:
            self.proxies.pop(name).stop()
        if name == "mailproxy":
            proxy = start_mailproxy(self.folder, self.python, workers, options, path)
        else:
            proxy = start_peer(name, self.folder, workers)
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
    """Start stub servers and clients, on this interpreter; measurements start the proxies.

    Args:
        python: The interpreter of the proxy; it has the proxy's dependencies.
    """
    for program, package in (("openssl", "openssl"), ("taskset", "util-linux")):
        if shutil.which(program) is None:
            raise MissingProgram(f"not installed: {program} (Debian: {package})")
    try:
        socket.create_server(("127.0.0.1", PORTS.base)).close()
    except OSError as error:
        raise MissingProgram(f"another benchmark runs, or uses port {PORTS.base}: {error}") from error
    raise_open_files_limit()
    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))  # so that nothing is left
    with tempfile.TemporaryDirectory(prefix="mailproxy-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        make_certificates(folder)
        ports = (str(PORTS.peer(peer)) for peer in PEERS)
        stub_servers = pinned(LOAD_CPU, sys.executable, "-m", "benchmarks.stub_servers", *ports)
        load = LoadProcess()
        made = Bench(folder, python, load, stub_servers.pid)
        try:
            wait_for(PORTS.peer("smtp"), stub_servers)
            yield made
        finally:
            for proxy in made.proxies.values():
                proxy.stop()
            load.stop()
            stop(stub_servers)


def start_peer(name: str, folder: Path, workers: int) -> Proxy:
    """Start one of the programs that are compared with.

    Raises:
        MissingProgram: It is not installed, or does not start.
    """
    start = {"nginx": start_nginx, "dovecot": start_dovecot, "haproxy": start_haproxy}[name]
    if shutil.which(name) is None:
        raise MissingProgram(f"not installed (Debian: {PACKAGES[name]})")
    try:
        return start(folder, workers)
    except RuntimeError as error:
        raise MissingProgram(f"does not start (Debian: {PACKAGES[name]}): {error}") from error


def start_nginx(folder: Path, workers: int) -> Proxy:
    """Start nginx."""
    (folder / "nginx.conf").write_text(nginx_conf(folder, "nginx", workers))
    process = _start_with_log(
        folder, "nginx", workers, "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")
    )
    _wait_or_stop(PORTS.proxy("nginx", "smtps"), process, folder / "nginx.log")
    return Proxy("nginx", process, _workers(process.pid, "worker process", workers))


def start_dovecot(folder: Path, workers: int) -> Proxy:
    """Start Dovecot; all its processes count."""
    upstreams = {name: PORTS.peer(name) for name in ("imap", "pop3", "smtp")}
    listeners = PORTS.proxies("dovecot", dovecot.LISTENERS)
    conf = dovecot.configuration(
        folder, listeners, upstreams, workers=workers, connections=raise_open_files_limit() // 2 - 500
    )
    (folder / "dovecot.conf").write_text(conf)
    process = _start_with_log(
        folder, "dovecot", workers, dovecot.PROGRAM, "-F", "-c", str(folder / "dovecot.conf")
    )
    _wait_or_stop(listeners["smtps"], process, folder / "dovecot.log")
    time.sleep(0.5)  # until the login processes and the authentication process have found one another
    return Proxy("dovecot", process)


def start_haproxy(folder: Path, workers: int) -> Proxy:
    """Start HAProxy, with a master process, which ``SIGUSR2`` makes load its configuration again."""
    listeners = PORTS.proxies("haproxy", haproxy.LISTENERS)
    conf = haproxy.configuration(
        folder, listeners, PORTS.peer("imap"), threads=workers, open_files=raise_open_files_limit()
    )
    (folder / "haproxy.cfg").write_text(conf)
    process = _start_with_log(
        folder, "haproxy", workers, haproxy.PROGRAM, "-W", "-q", "-f", str(folder / "haproxy.cfg")
    )
    _wait_or_stop(listeners["imaps"], process, folder / "haproxy.log")
    return Proxy("haproxy", process, _workers(process.pid, "haproxy", 1))


def _start_with_log(folder: Path, name: str, workers: int, *words: str) -> subprocess.Popen[str]:
    with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
        return pinned(PROXY_CPU if workers == 1 else "", *words, stdout=log, stderr=log)


def _wait_or_stop(port: int, process: subprocess.Popen[str], log: Path) -> None:
    try:
        wait_for(port, process, log)
    except RuntimeError:
        stop(process)
        raise


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
    modules = [*([str(_ROOT / path)] if path else []), str(_ROOT / "proxy")]
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
    for _ in range(600):
        found = tuple(pid for pid in children(parent) if word in command(pid))
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise RuntimeError(f"{parent} has not started {count} workers")


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
    port: int, process: subprocess.Popen[Any], log: Path | None = None, seconds: float = 30.0
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
