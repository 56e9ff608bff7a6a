# SPDX-License-Identifier: Apache-2.0
"""docs/exposing.md: what the operator renders for its manifests, and the proxy behind a balancer."""

from __future__ import annotations

import imaplib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from mailproxy_demo.manifest_file import read_resource
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.settings import Platform
from support.guides.blocks import Object, Page
from support.guides.clients import CLIENT, ImapTls, connect
from support.guides.front import GuideFront, GuideFronts
from support.helm_schemas import pod_security_violations
from support.servers.programs import eventually
from support.servers.tiny_mail import tiny_mail

PAGE: Final = Page("exposing.md")
PASSWORDS: Final = {"alice": "wonderland"}
HEADER: Final = b"PROXY TCP4 203.0.113.9 192.0.2.10 4711 993\r\n"


def _mailproxy(block: str) -> Object:
    [found] = [one for one in PAGE.objects(block) if one["kind"] == "MailProxy"]
    return found


def _rendered(block: str) -> dict[str, Any]:
    resource = Resource.read(read_resource(yaml.safe_dump(_mailproxy(block)), "page"))
    objects = render(planned(resource, Platform()))
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in objects}


def _pod(block: str, kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = _rendered(block)[f"{kind}/edge"]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("block", ["loadbalancer", "metallb"])
def test_service_keeps_the_clients_address(block: str) -> None:
    service = _rendered(block)["Service/edge"]
    assert (service["spec"]["type"], service["spec"]["externalTrafficPolicy"]) == ("LoadBalancer", "Local")


def test_local_is_the_default_of_a_load_balancer() -> None:
    assert _rendered("proxy")["Service/edge"]["spec"]["externalTrafficPolicy"] == "Local"


def test_metallb_gets_the_address_of_its_pool() -> None:
    pool, advertisement, _ = PAGE.objects("metallb")
    annotations = _rendered("metallb")["Service/edge"]["metadata"]["annotations"]
    address = annotations["metallb.io/loadBalancerIPs"]
    assert pool["spec"]["addresses"] == [f"{address}/32"]
    assert advertisement["spec"]["ipAddressPools"] == [pool["metadata"]["name"]]


def test_ports_of_nodes_need_a_privileged_namespace() -> None:
    namespace, _ = PAGE.objects("hostport")
    pod = _pod("hostport", "DaemonSet")
    ports = {
        port["hostPort"]: port["containerPort"]
        for port in pod["containers"][0]["ports"]
        if "hostPort" in port
    }
    assert ports == {993: 993, 465: 465}
    assert any("host port" in one for one in pod_security_violations(pod))
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "privileged"}


def test_host_network_listens_above_10000() -> None:
    pod = _pod("hostnetwork", "DaemonSet")
    assert pod["hostNetwork"] is True
    assert "sysctls" not in pod.get("securityContext", {})
    assert 10993 in [port["containerPort"] for port in pod["containers"][0]["ports"]]


def test_routes_lead_to_ports_of_the_service() -> None:
    gateway, *routes, policy, _ = PAGE.objects("gateway")
    service = _rendered("gateway")["Service/edge"]
    ports = {port["port"] for port in service["spec"]["ports"]}
    listeners = {one["name"]: one["port"] for one in gateway["spec"]["listeners"]}
    for route in routes:
        [backend] = route["spec"]["rules"][0]["backendRefs"]
        [parent] = route["spec"]["parentRefs"]
        assert backend["name"] == service["metadata"]["name"]
        assert backend["port"] in ports
        assert listeners[parent["sectionName"]] == backend["port"]
    targets = [target["name"] for target in policy["spec"]["targetRefs"]]
    assert targets == [route["metadata"]["name"] for route in routes]


# -- the proxy behind a balancer


class World:
    """The proxy, an IMAP server and the authentication service."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.fronts = GuideFronts(folder, stack, PASSWORDS)
        self.mail = stack.enter_context(tiny_mail("imap"))

    def start(self, **changes: object) -> GuideFront:
        body = _mailproxy("proxy")
        body["spec"]["mail"].update({"setRealIpFrom": [f"{CLIENT}/32"], **changes})
        front = self.fronts.start(body, {"imap": self.mail.port, "submission": 1})
        for path, backend in self.fronts.service.rules.items():
            self.fronts.service.rules[path] = type(backend)(backend.port)
        return front


@pytest.fixture
def world(open_folder: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(open_folder, stack)


class _Balanced(ImapTls):
    """A client behind a balancer, which sends the header before TLS."""

    def _create_socket(self, timeout: float | None) -> Any:
        plain = connect(self.port, timeout)
        plain.sendall(HEADER)
        return self._context.wrap_socket(plain)


def _log_in(front: GuideFront, world: World) -> None:
    client = _Balanced(front.ports[993], world.fronts.tls.client())
    try:
        assert client.login("alice", PASSWORDS["alice"])[0] == "OK"
    finally:
        client.shutdown()


def test_client_of_the_log_is_that_of_the_header(world: World) -> None:
    front = world.start()
    _log_in(front, world)
    front.proxy.event("session", client="203.0.113.9", result="success")


def test_header_of_an_untrusted_balancer(world: World) -> None:
    front = world.start(setRealIpFrom=["192.0.2.0/24"])
    _log_in(front, world)
    front.proxy.event("session", client=CLIENT, result="success")
    assert world.fronts.service.latest_request("/imap")["proxy-protocol-addr"] == "203.0.113.9"


def test_client_without_a_header_is_disconnected(world: World) -> None:
    front = world.start()
    with connect(front.ports[993]) as client:
        client.sendall(b"a1 NOOP\r\n")
        assert client.recv(100) == b""
    assert eventually(lambda: front.proxy.events("proxy_protocol_failed"), "the event")
    front.proxy.event("session", reason="proxy_protocol_failed")


def test_header_at_a_listener_that_expects_none(world: World) -> None:
    body = _mailproxy("loadbalancer")
    front = world.fronts.start(body, {"imap": world.mail.port, "submission": 1})
    with pytest.raises((OSError, imaplib.IMAP4.error)):
        _log_in(front, world)
    with connect(front.ports[143]) as client:
        client.sendall(HEADER)
        lines = client.makefile("rb")
        assert lines.readline() == b"* OK IMAP4 ready\r\n"
        assert b" BAD " in lines.readline()
        lines.close()
    front.proxy.event("session", client=CLIENT, server="imap")
