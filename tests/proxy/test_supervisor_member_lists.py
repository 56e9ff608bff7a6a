# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from mailproxy.supervisor.member_lists import MemberLists
from mailproxy_config.compile import compile_proxy
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import AuthMode, Protocol, ProxyConfig
from mailproxy_config.rendered import dump
from mailproxy_config.secret_refs import Mounts
from mailproxy_config.upstream_groups import GroupMembers, GroupServer, Route, UpstreamGroup
from mailproxy_config.upstream_members import (
    Member,
    MemberDocument,
    MemberList,
    MemberState,
    dump_members,
)
from support import configs
from support.proxy_process import COMMAND, ProxyProcess, free_port, wait_until
from support.routed_logins import imap_server, log_in, replace


def config(file: Path, *names: str) -> ProxyConfig:
    groups = tuple(
        UpstreamGroup(
            name=name,
            servers=(GroupServer(address="a", host="a"),),
            members=GroupMembers(service="mail/dovecot", file=str(file)),
        )
        for name in names
    )
    route = (Route(domains=("*",), upstream=names[0]),)
    directives = {"route": route, "upstream_groups": groups, "auth_http": None}
    return ProxyConfig(servers=(configs.server(Protocol.IMAP, auth_mode=AuthMode.UPSTREAM, **directives),))


def text(generation: int, *addresses: str, group: str = "dovecot") -> str:
    members = tuple(
        Member(id=f"dovecot-{number}", addresses=(address,), ports={"143": 143})
        for number, address in enumerate(addresses)
    )
    return dump_members(
        MemberDocument(generation, {group: MemberList(service="mail/dovecot", members=members)})
    )


def polled(lists: MemberLists) -> object:
    """The result of the poll that finds a change: the second one, when the file is complete."""
    lists.poll()
    return lists.poll()


def test_file_is_read_at_first_and_after_each_change(tmp_path: Path) -> None:
    file, lists = tmp_path / "members.json", MemberLists()
    file.write_text(text(1, "192.0.2.1"))
    read = lists.use(config(file, "dovecot"))
    assert read.loaded == ((file, 1),)
    assert read.changed == lists.lists()
    assert lists.counts() == {("dovecot", "Ready"): 1, ("dovecot", "Draining"): 0, ("dovecot", "Gone"): 0}
    assert not lists.poll().changed
    replace(file, text(2, "192.0.2.1", "192.0.2.2"))
    read = polled(lists)
    assert [len(each.members) for each in read.changed.values()] == [2]
    assert read.loaded == ((file, 2),)
    # A new generation with the same members is nothing that workers need.
    replace(file, text(3, "192.0.2.1", "192.0.2.2"))
    read = polled(lists)
    assert (read.changed, read.loaded) == ({}, ((file, 3),))


def test_invalid_file_keeps_the_last_version(tmp_path: Path) -> None:
    file, lists = tmp_path / "members.json", MemberLists()
    file.write_text(text(1, "192.0.2.1"))
    lists.use(config(file, "dovecot"))
    before = lists.lists()
    for broken in ("", text(2, "192.0.2.1")[:-5], '{"generation":2,"upstreams":[]}'):
        replace(file, broken)
        read = polled(lists)
        assert (read.changed, read.loaded) == ({}, ())
        assert [problem.path for problem in read.kept] == [str(file)]
        assert (lists.kept, lists.lists()) == (1, before)
    replace(file, text(3, "192.0.2.9"))
    assert polled(lists).changed
    assert lists.kept == 0


def test_missing_file_and_missing_group_have_no_list(tmp_path: Path) -> None:
    file, lists = tmp_path / "members.json", MemberLists()
    read = lists.use(config(file, "dovecot"))
    assert (read.changed, read.kept) == ({"dovecot": None}, ())
    assert lists.counts() == {}
    replace(file, text(1, "192.0.2.1", group="other"))
    assert polled(lists).changed == {}
    replace(file, text(2, "192.0.2.1"))
    assert polled(lists).changed["dovecot"] is not None
    file.unlink()  # the last version stays: a deleted ConfigMap must not change where logins go
    polled(lists)
    assert lists.lists()["dovecot"] is not None


def test_groups_of_another_configuration_are_dropped(tmp_path: Path) -> None:
    file, lists = tmp_path / "members.json", MemberLists()
    file.write_text(text(1, "192.0.2.1"))
    lists.use(config(file, "dovecot"))
    read = lists.use(config(file, "dovecot"), config(file, "other"))
    assert read.changed == {"other": None}
    assert lists.use(config(file, "other")).changed == {"dovecot": None}


USERS = tuple(f"user{number}@example.org" for number in range(12))
READY, DRAINING, GONE = MemberState.READY, MemberState.DRAINING, MemberState.GONE


class MailServers:
    """Mail servers of a StatefulSet, the file with its members, and a proxy in front of them.

    A server that is replaced has another port, as a pod has another address.
    """

    def __init__(
        self, directory: Path, servers: contextlib.ExitStack, count: int, **upstream: object
    ) -> None:
        self.file = directory / "members.json"
        self.port = free_port()
        self.states: dict[int, MemberState] = dict.fromkeys(range(count), READY)
        self._servers = servers
        self._ports: dict[int, int] = {}
        self._generation = 0
        for number in range(count):
            self.start(number)
        self.write()
        group = {"name": "dovecot", "service": {"name": "dovecot", "namespace": "mail"}, **upstream}
        spec = {
            "workers": 2,
            "drain": {"delay": "60s"},
            "mail": {
                "authMode": "Upstream",
                "authHttpServerNetworks": ["127.0.0.0/8"],
                "routes": [{"domains": ["*"], "upstream": "dovecot"}],
            },
            "upstreams": [group],
            "servers": [
                {
                    "name": "imap",
                    "protocol": "imap",
                    "listen": [{"address": "127.0.0.1", "port": self.port}],
                }
            ],
        }
        manifest = {
            "apiVersion": "mailproxy.dev/v1alpha1",
            "kind": "MailProxy",
            "metadata": {"name": "edge", "namespace": "mail"},
            "spec": spec,
        }
        config = compile_proxy(parse_manifest(manifest), mounts=Mounts(members=str(self.file)))
        self.config = directory / "mailproxy.json"
        self.config.write_bytes(dump(config))

    def start(self, number: int) -> None:
        """Start a server, or replace it by one at another port."""
        server = imap_server([], "", text=f"dovecot-{number}")
        self._ports[number] = self._servers.enter_context(server)

    def write(self, proxy: ProxyProcess | None = None) -> None:
        """Write the file, and wait until the proxy has read it."""
        self._generation += 1
        members = tuple(
            Member(
                id=f"dovecot-{number}",
                addresses=("127.0.0.1",),
                ports={"143": self._ports[number]},
                state=state,
                until=4_000_000_000 if state is GONE else 0,
            )
            for number, state in self.states.items()
        )
        lists = {"dovecot": MemberList(service="mail/dovecot", members=members)}
        replace(self.file, dump_members(MemberDocument(self._generation, lists)))
        if proxy is not None:
            wait_until(lambda: self._generation in generations(proxy), f"generation {self._generation}")

    def owners(self) -> dict[str, str]:
        """Return the reply to a login of each user."""
        return {user: log_in(self.port, user) for user in USERS}


def generations(proxy: ProxyProcess) -> list[object]:
    return [event["generation"] for event in proxy.logged("members_loaded")]


@contextlib.contextmanager
def logins_of_all(servers: MailServers, found: dict[str, set[str]]) -> Iterator[None]:
    """Log all users in again and again, and collect the replies to each."""
    ended = threading.Event()

    def run(users: tuple[str, ...]) -> None:
        while not ended.wait(0.05):
            for user in users:
                found.setdefault(user, set()).add(log_in(servers.port, user))

    threads = [threading.Thread(target=run, args=(USERS[start::2],)) for start in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def temporary(replies: Mapping[str, str]) -> set[str]:
    return {user for user, reply in replies.items() if reply.startswith("a NO [UNAVAILABLE]")}


def test_stateful_set_is_rolled_under_load_without_moving_a_user_or_ending_a_session(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = MailServers(tmp_path, stack, 3, hash="User")
        proxy = stack.enter_context(ProxyProcess(servers.config, command=COMMAND))
        proxy.wait_for_event("listening")
        owners = servers.owners()
        assert set(owners.values()) == {f"a OK dovecot-{number}" for number in range(3)}
        session = stack.enter_context(socket.create_connection(("127.0.0.1", servers.port), timeout=30))
        session.recv(4096)
        session.sendall(b"a LOGIN user0@example.org secret\r\n")
        assert session.recv(4096).startswith(b"a OK dovecot")
        replies: dict[str, set[str]] = {}
        with logins_of_all(servers, replies):
            for number in (2, 1, 0):
                for state in (DRAINING, GONE):
                    servers.states[number] = state
                    servers.write(proxy)
                    away = {user for user, owner in owners.items() if owner == f"a OK dovecot-{number}"}
                    assert temporary(servers.owners()) == away
                servers.start(number)
                servers.states[number] = READY
                servers.write(proxy)
                assert servers.owners() == owners
        for user, owner in owners.items():
            # No other server, and not once the reply to a wrong password.
            others = {reply for reply in replies[user] if reply != owner}
            assert all(reply.startswith("a NO [UNAVAILABLE]") for reply in others), replies
            assert owner in replies[user]
        session.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            assert session.recv(4096) != b"", "the session has been closed"
        assert len(proxy.logged("configuration_loaded")) == 1
        assert proxy.metric('mailproxy_group_members{group="dovecot",state="Ready"}') == 3
        assert proxy.metric('mailproxy_group_logins_total{group="dovecot",result="unavailable"}') > 0


def test_broken_file_changes_nothing_and_a_new_worker_gets_the_last_members(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = MailServers(tmp_path, stack, 2, hash="User")
        proxy = stack.enter_context(ProxyProcess(servers.config, command=COMMAND))
        proxy.wait_for_event("listening")
        owners = servers.owners()
        replace(servers.file, servers.file.read_text()[:-1])
        kept = proxy.wait_for_event("members_kept")
        assert (kept["path"], kept["reason"][:11]) == (str(servers.file), "is not JSON")
        assert proxy.metric("mailproxy_member_lists_refused") == 1
        assert servers.owners() == owners
        before = set(proxy.workers())
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(set(proxy.workers()) - before) == len(before), "new workers")
        assert servers.owners() == owners
        servers.write(proxy)
        assert proxy.metric("mailproxy_member_lists_refused") == 0


def test_members_change_while_the_proxy_drains(tmp_path: Path) -> None:
    """Mail servers and proxies are replaced together when a node is drained."""
    with contextlib.ExitStack() as stack:
        servers = MailServers(tmp_path, stack, 2, hash="User")
        proxy = stack.enter_context(ProxyProcess(servers.config, command=COMMAND))
        proxy.wait_for_event("listening")
        owners = servers.owners()
        proxy.signal(signal.SIGTERM)
        wait_until(lambda: proxy.get("/readyz")[0] == 503, "the drain")
        servers.start(0)
        servers.write(proxy)
        wait_until(lambda: servers.owners() == owners, "the new address of dovecot-0")
        servers.states[1] = DRAINING
        servers.write(proxy)
        away = {user for user, owner in owners.items() if owner == "a OK dovecot-1"}
        wait_until(lambda: temporary(servers.owners()) == away, "the state of dovecot-1")


def test_members_come_and_go_under_load_without_hash(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = MailServers(tmp_path, stack, 3)
        proxy = stack.enter_context(ProxyProcess(servers.config, command=COMMAND))
        proxy.wait_for_event("listening")
        replies: dict[str, set[str]] = {}
        with logins_of_all(servers, replies):
            for number in (0, 1):
                servers.states[number] = DRAINING
                servers.write(proxy)
                assert f"a OK dovecot-{number}" not in servers.owners().values()
                servers.start(number)
                servers.states[number] = READY
                servers.write(proxy)
        assert {reply for found in replies.values() for reply in found} == {
            f"a OK dovecot-{number}" for number in range(3)
        }
        servers.states.clear()
        servers.write(proxy)
        assert temporary(servers.owners()) == set(USERS)
