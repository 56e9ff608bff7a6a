# SPDX-License-Identifier: Apache-2.0
"""Loading a configuration before it is sent to workers."""

from __future__ import annotations

import asyncio
import errno
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from mailproxy.net.listen_plan import SocketPlan
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.net.upstream_health import UpstreamHealth
from mailproxy.supervisor import admin_endpoint, cpus
from mailproxy.supervisor.config_check import CheckResult, check_config
from mailproxy.supervisor.config_loader import ConfigLoader, ListenError, in_thread
from mailproxy.supervisor.options import RunOptions
from mailproxy.supervisor.status import Status
from mailproxy_config.errors import ConfigError
from support.proxy_process import free_port
from support.tls_authority import Authority

MANIFEST: Final = """\
apiVersion: mailproxy.dev/v1alpha1
kind: MailProxy
metadata: {{name: edge, generation: 3}}
spec:
  {workers}
  mail: {{authHttp: "http://127.0.0.1:9000/auth"}}
  servers:
    - {{name: imap, protocol: imap, listen: [{{address: {address}, port: {port}{ssl}}}]{more}}}
"""


class Setting:
    """A file and its loader."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.file = folder / "mailproxy.yaml"
        self.port = free_port()
        self.preparation = ConfigLoader(RunOptions(file=self.file, **options))  # type: ignore[arg-type]
        self.write()

    def write(self, **changes: object) -> None:
        values = {"workers": "", "address": "127.0.0.1", "port": self.port, "ssl": "", "more": ""}
        self.file.write_text(MANIFEST.format(**(values | changes)))


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    setting = Setting(tmp_path)
    yield setting
    setting.preparation.close()


async def test_revision_has_everything_a_worker_needs(setting: Setting) -> None:
    revision = await setting.preparation.prepare()
    setting.preparation.commit(revision)
    order = revision.configure_message()
    assert order.sockets == (f"127.0.0.1:{setting.port}",)
    assert (order.serial, order.generation) == (1, 3)
    assert order.ticket_keys == {}  # nothing here uses TLS
    assert revision.config.servers[0].server_name == order.hostname
    assert [sock.getsockname() for sock in revision.sockets_for(0)] == [("127.0.0.1", setting.port)]


async def test_every_worker_gets_its_own_socket(setting: Setting) -> None:
    setting.write(workers="workers: 2")
    revision = await setting.preparation.prepare()
    setting.preparation.commit(revision)
    first, second, third = (revision.sockets_for(slot)[0].fileno() for slot in range(3))
    assert first == third != second


async def test_ticket_keys_stay_the_same_over_reloads(setting: Setting) -> None:
    first = await setting.preparation.prepare()
    setting.preparation.commit(first)
    second = await setting.preparation.prepare()
    setting.preparation.commit(second)
    assert first.ticket_keys is second.ticket_keys
    assert (first.serial, second.serial) == (1, 2)
    assert first.hash == second.hash


@pytest.mark.parametrize(
    ("option", "written", "count"),
    [
        # --workers   the file               workers
        (None, "", 1),
        (None, "workers: 3", 3),
        (None, "workers: auto", cpus.usable()),
        (2, "workers: 3", 2),
        ("auto", "workers: 3", cpus.usable()),
    ],
)
async def test_workers_option_overrides_the_file(
    tmp_path: Path, option: object, written: str, count: int
) -> None:
    setting = Setting(tmp_path, workers=option)
    setting.write(workers=written)
    revision = await setting.preparation.prepare()
    assert revision.workers == count
    setting.preparation.discard(revision)


async def test_missing_files_are_reported_and_watched(setting: Setting, tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    files = f"{{certificateFile: {certificate}, keyFile: {key}}}"
    setting.write(ssl=", ssl: true", more=f", sslCertificate: [{files}]")
    with pytest.raises(ConfigError) as caught:
        await setting.preparation.prepare()
    assert [str(problem) for problem in caught.value.problems] == [
        f"spec.servers[0].sslCertificate: {certificate}: there is no such file",
        f"spec.servers[0].sslCertificate: {key}: there is no such file",
    ]
    assert setting.preparation.files == {setting.file, certificate, key}


async def test_watched_files_are_those_of_the_running_configuration(setting: Setting, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("value")
    rendered = "authHttpHeader: [{name: X-Key, valueFrom: {secretKeyRef: {name: auth, key: key}}}]"
    first = await setting.preparation.prepare()
    setting.preparation.commit(first)
    setting.write(more=f", {rendered}")
    with pytest.raises(ConfigError, match="no such file"):
        await setting.preparation.prepare()
    assert setting.preparation.files == {setting.file, Path("/etc/mailproxy-refs/secrets/auth/key")}
    setting.write()
    setting.preparation.commit(await setting.preparation.prepare())
    assert setting.preparation.files == {setting.file}


@pytest.mark.parametrize(
    ("address", "error", "reason"),
    [
        ("no-such-host.invalid", ConfigError, "host not found"),
        ("192.0.2.77", ListenError, "no interface of this machine"),
    ],
)
async def test_address_that_cannot_be_bound_is_reported(
    setting: Setting, address: str, error: type[Exception], reason: str
) -> None:
    setting.write(address=address)
    with pytest.raises(error, match=reason):
        await setting.preparation.prepare()


async def test_start_and_check_report_the_same_lines(setting: Setting, tmp_path: Path) -> None:
    cases = {
        "listen no-such-host.invalid:143;": f'{setting.file}:2: "listen": host not found',
        "listen 192.0.2.77:10143;": f'{setting.file}:2: "listen": cannot listen on 192.0.2.77:10143: ',
        "listen 127.0.0.1:10143 ssl; ssl_certificate /nowhere; ssl_certificate_key /nowhere;": (
            f'{setting.file}:2: "ssl_certificate": /nowhere: there is no such file'
        ),
    }
    for line, begins in cases.items():
        setting.file.write_text(f"mail {{ auth_http a; server {{ protocol imap;\n{line}\n}} }}")
        with pytest.raises((ConfigError, ListenError)) as caught:
            await setting.preparation.prepare()
        error = caught.value
        problems = error.problems if isinstance(error, ConfigError) else [error.problem]
        assert str(problems[0]).startswith(begins)


async def test_one_error_of_the_mail_block_is_one_problem_for_all_servers(
    setting: Setting, tmp_path: Path
) -> None:
    pair = Authority(tmp_path).issue().files
    servers = "".join(
        f"server {{ listen 127.0.0.1:{port} ssl; protocol imap; }}\n" for port in (10143, 10144)
    )
    setting.file.write_text(
        f"mail {{ auth_http a; ssl_certificate '{pair.certificate}'; ssl_certificate_key '{pair.key}';\n"
        f"ssl_ciphers nonsense;\n{servers}}}"
    )
    with pytest.raises(ConfigError) as caught:
        await setting.preparation.prepare()
    (problem,) = caught.value.problems
    assert str(problem).startswith(f'{setting.file}:2: "ssl_ciphers": ')


async def test_notices_of_tls_are_returned(setting: Setting, tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue().files
    files = f"{{certificateFile: {pair.certificate}, keyFile: {pair.key}}}"
    setting.write(ssl=", ssl: true", more=f", sslCertificate: [{files}], sslProtocols: [SSLv2, TLSv1.3]")
    revision = await setting.preparation.prepare()
    setting.preparation.discard(revision)
    assert [str(notice) for notice in revision.notices] == [
        f"spec.servers[0].sslProtocols: {ssl.OPENSSL_VERSION} has no SSLv2: ignored"
    ]


@pytest.mark.parametrize(
    ("text", "is_manifest"),
    [
        (MANIFEST.format(workers="", address="127.0.0.1", port=25, ssl="", more=""), True),
        ("mail { auth_http a;\nserver { protocol imap; listen 127.0.0.1:25; } }", False),
    ],
)
async def test_a_privileged_port_names_the_capability_and_the_sysctl(
    setting: Setting, text: str, is_manifest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(plans: Sequence[SocketPlan], _count: int) -> NoReturn:
        raise ListenError(plans[0], PermissionError(errno.EACCES, "Permission denied"))

    monkeypatch.setattr(setting.preparation.listeners, "prepare", refuse)
    setting.file.write_text(text)
    with pytest.raises(ListenError) as caught:
        await setting.preparation.prepare()
    message = str(caught.value.problem)
    assert "CAP_NET_BIND_SERVICE" in message
    assert "net.ipv4.ip_unprivileged_port_start to 25 or less" in message
    assert ("portStrategy" in message) is is_manifest
    assert message.startswith(
        "spec.servers[0].listen[0]: " if is_manifest else f'{setting.file}:2: "listen": '
    )


async def test_healthz_answers_while_a_configuration_is_loaded(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load with CPU-bound Python code, like a YAML scanner."""
    started, release = threading.Event(), threading.Event()

    def compute(*arguments: Any, **options: Any) -> CheckResult:
        started.set()
        while not release.is_set():
            pass
        return check_config(*arguments, **options)

    monkeypatch.setattr("mailproxy.supervisor.config_loader.check_config", compute)
    endpoint = await admin_endpoint.serve("127.0.0.1", 0, Status(UpstreamHealth(SharedMemory())))
    async with asyncio.TaskGroup() as tasks:
        loading = tasks.create_task(setting.preparation.prepare())
        try:
            while not started.is_set():
                await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            assert not loading.done()
            writer.close()
        finally:
            release.set()
    setting.preparation.discard(loading.result())
    await endpoint.close()


async def test_in_thread_returns_the_result_or_raises() -> None:
    def fail() -> int:
        raise ValueError("no")

    assert await in_thread(lambda: 5) == 5
    with pytest.raises(ValueError, match="no"):
        await in_thread(fail)


def test_cancelled_thread_does_not_delay_exit() -> None:
    release = threading.Event()

    async def give_up() -> None:
        async with asyncio.timeout(0.01):
            await in_thread(lambda: release.wait(60))

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "config-loader"]
    release.set()
    thread.join(10)
    assert not thread.is_alive()
