# SPDX-License-Identifier: Apache-2.0
"""A configuration is ready to run, or the reason why not is known, before any worker hears of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from mailproxy.supervisor import cpus
from mailproxy.supervisor.prepare import CannotListen, Preparation, in_thread
from mailproxy.supervisor.settings import Settings
from mailproxy_config.errors import ConfigError
from support.proxies import free_port

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
    """A file, and what prepares it."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.file = folder / "mailproxy.yaml"
        self.port = free_port()
        self.preparation = Preparation(Settings(file=self.file, **options))  # type: ignore[arg-type]
        self.write()

    def write(self, **changes: object) -> None:
        values = {"workers": "", "address": "127.0.0.1", "port": self.port, "ssl": "", "more": ""}
        self.file.write_text(MANIFEST.format(**(values | changes)))


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    setting = Setting(tmp_path)
    yield setting
    setting.preparation.close()


async def test_it_has_everything_that_a_worker_needs(setting: Setting) -> None:
    deployment = await setting.preparation.prepare()
    setting.preparation.commit(deployment)
    order = deployment.order()
    assert order.sockets == (f"127.0.0.1:{setting.port}",)
    assert (order.serial, order.generation) == (1, 3)
    assert len(order.ticket_key) == 80
    assert deployment.config.servers[0].server_name == order.hostname
    assert [sock.getsockname() for sock in deployment.sockets_of(0)] == [("127.0.0.1", setting.port)]


async def test_every_worker_gets_its_own_socket_and_the_places_go_round(setting: Setting) -> None:
    setting.write(workers="workers: 2")
    deployment = await setting.preparation.prepare()
    setting.preparation.commit(deployment)
    first, second, third = (deployment.sockets_of(place)[0].fileno() for place in range(3))
    assert first == third != second


async def test_the_same_key_seals_tickets_for_as_long_as_it_runs(setting: Setting) -> None:
    first = await setting.preparation.prepare()
    setting.preparation.commit(first)
    second = await setting.preparation.prepare()
    setting.preparation.commit(second)
    assert first.ticket_key == second.ticket_key
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
async def test_the_option_wins_over_the_file(
    tmp_path: Path, option: object, written: str, count: int
) -> None:
    setting = Setting(tmp_path, workers=option)
    setting.write(workers=written)
    deployment = await setting.preparation.prepare()
    assert deployment.workers == count
    setting.preparation.discard(deployment)


async def test_missing_files_are_told_and_watched_for(setting: Setting, tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    files = f"{{certificateFile: {certificate}, keyFile: {key}}}"
    setting.write(ssl=", ssl: true", more=f", sslCertificate: [{files}]")
    with pytest.raises(ConfigError) as caught:
        await setting.preparation.prepare()
    assert [problem.path for problem in caught.value.problems] == [
        "servers[0].ssl_certificate",
        "servers[0].ssl_certificate_key",
    ]
    assert setting.preparation.files == {setting.file, certificate, key}


async def test_what_is_watched_follows_what_runs(setting: Setting, tmp_path: Path) -> None:
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
        ("192.0.2.77", CannotListen, "no interface of this machine"),
    ],
)
async def test_what_cannot_be_listened_on_is_told(
    setting: Setting, address: str, error: type[Exception], reason: str
) -> None:
    setting.write(address=address)
    with pytest.raises(error, match=reason):
        await setting.preparation.prepare()


async def test_a_thread_gives_its_result_or_its_error() -> None:
    def fail() -> int:
        raise ValueError("no")

    assert await in_thread(lambda: 5) == 5
    with pytest.raises(ValueError, match="no"):
        await in_thread(fail)


def test_nobody_waits_for_a_thread_that_is_not_needed_any_more() -> None:
    release = threading.Event()

    async def give_up() -> None:
        async with asyncio.timeout(0.01):
            await in_thread(lambda: release.wait(60))

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "preparing"]
    release.set()
    thread.join(10)
    assert not thread.is_alive()
