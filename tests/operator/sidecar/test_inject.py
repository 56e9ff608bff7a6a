# SPDX-License-Identifier: Apache-2.0
"""The proxy is injected into pods, except into pods that it is not compatible with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.errors import InjectionRefusal
from mailproxy_operator.settings import Platform
from mailproxy_operator.sidecar.inject import Injected, carries, inject
from support.sidecars import INJECT, made, pod

PROXY = "mailproxy.dev/proxy"
PORT_START = "net.ipv4.ip_unprivileged_port_start"


def put(found: Injected | InjectionRefusal) -> Manifest:
    assert isinstance(found, Injected), found
    return found.pod


def why_not(found: Injected | InjectionRefusal) -> tuple[str, str]:
    assert isinstance(found, InjectionRefusal)
    return found.reason, found.message


def sysctls(one: Manifest) -> list[tuple[str, str]]:
    return [(each["name"], each["value"]) for each in one["spec"]["securityContext"].get("sysctls", [])]


def proxy(one: Manifest) -> Manifest:
    return next(each for each in one["spec"]["initContainers"] if each["name"] == "mailproxy")


def test_it_starts_first_and_so_ends_last() -> None:
    asking = pod(
        initContainers=[{"name": "prepare", "image": "x"}, {"name": "log", "restartPolicy": "Always"}]
    )
    found = put(inject(made(), asking))["spec"]
    assert [one["name"] for one in found["initContainers"]] == ["mailproxy", "prepare", "log"]
    assert found["initContainers"][0]["restartPolicy"] == "Always"
    assert found["containers"] == asking["spec"]["containers"]


def test_the_pod_that_is_handed_in_stays_as_it_is() -> None:
    asking = pod()
    before = copy.deepcopy(asking)
    assert inject(made(), asking) != Injected(before)
    assert asking == before


def test_it_says_itself_all_that_the_restricted_standard_wants() -> None:
    security = proxy(put(inject(made(), pod(securityContext={"runAsUser": 0}))))["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_it_has_probes_ports_configuration_and_secrets() -> None:
    tls = {"authHttp": "http://127.0.0.1:9000/auth", "sslCertificate": [{"secretName": "mail-tls"}]}
    servers = [{"name": "imap", "protocol": "imap", "listen": [{"port": 993, "ssl": True}]}]
    found = put(inject(made(mail=tls, servers=servers), pod()))
    container = proxy(found)
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    assert [port["name"] for port in container["ports"]] == ["imap-993", "admin"]
    volumes = {one["name"]: one for one in found["spec"]["volumes"]}
    assert volumes["mailproxy-config"]["configMap"] == {"name": "edge-config", "defaultMode": 0o444}
    [source] = volumes["mailproxy-refs"]["projected"]["sources"]
    assert source["secret"]["name"] == "mail-tls"
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {name for name in volumes if name.startswith("mailproxy-")}


def test_the_application_s_token_is_out_of_its_reach() -> None:
    mounts = {one["mountPath"]: one["name"] for one in proxy(put(inject(made(), pod())))["volumeMounts"]}
    assert mounts["/var/run/secrets/kubernetes.io/serviceaccount"] == "mailproxy-no-token"


def test_doing_it_twice_is_doing_it_once() -> None:
    once = put(inject(made(), pod()))
    assert carries(once)
    assert inject(made(workers=4), once) == Injected(once)


def test_pod_gets_the_label_of_its_proxy() -> None:
    assert put(inject(made(), pod()))["metadata"]["labels"][PROXY] == "edge"


def test_pod_that_carries_the_sidecar_without_the_label_gets_it() -> None:
    """For example a pod that an older release, or its ``render --sidecar``, has made."""
    older = put(inject(made(), pod()))
    del older["metadata"]["labels"][PROXY]
    before = copy.deepcopy(older)
    again = put(inject(made(), older))
    assert again["metadata"]["labels"][PROXY] == "edge"
    assert again["spec"] == before["spec"]
    assert older == before


@pytest.mark.parametrize("label", ["mailproxy.dev/proxy", "mailproxy.dev/inject"])
def test_pod_with_the_label_of_another_proxy_is_not_injected(label: str) -> None:
    """The label may be part of the selector of the workload, so it must not be changed."""
    asking = pod()
    asking["metadata"]["labels"][label] = "other"
    reason, message = why_not(inject(made(), asking))
    assert reason == "LabelConflict"
    assert f"{label}=other" in message
    assert "edge" in message


@given(st.sets(st.sampled_from(["volumes", "initContainers", "securityContext", "labels", "annotations"])))
def test_whatever_a_pod_leaves_out_it_can_have_it(missing: set[str]) -> None:
    asking = pod()
    for name in missing:
        asking["spec"].pop(name, None)
        asking["metadata"].pop(name, None)
    found = put(inject(made(), asking))
    assert carries(found)
    assert found["metadata"]["labels"][INJECT] == "edge"
    assert inject(made(), found) == Injected(found)


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ({"containers": [{"name": "mailproxy"}]}, "NameConflict", "container mailproxy"),
        ({"initContainers": [{"name": "mailproxy"}]}, "NameConflict", "container mailproxy"),
        (
            {"volumes": [{"name": "mailproxy-config", "emptyDir": {}}]},
            "NameConflict",
            "volume mailproxy-config",
        ),
        (
            {"containers": [{"name": "cyrus", "ports": [{"containerPort": 143}]}]},
            "PortConflict",
            "port 143 is taken by container cyrus",
        ),
        (
            {"initContainers": [{"name": "exporter", "ports": [{"containerPort": 9113, "protocol": "TCP"}]}]},
            "PortConflict",
            "port 9113 is taken by container exporter",
        ),
        ({"hostNetwork": True}, "HostNetwork", "cannot open port 143"),
        (
            {"securityContext": {"sysctls": [{"name": PORT_START, "value": "1024"}]}},
            "SysctlConflict",
            "closes port 143",
        ),
        ({"os": {"name": "windows"}}, "WrongSystem", "windows"),
    ],
)
def test_what_cannot_live_with_it_does_not_get_it(spec: dict[str, Any], reason: str, message: str) -> None:
    found = why_not(inject(made(), pod(**spec)))
    assert found[0] == reason
    assert message in found[1]


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": [{"name": "dns", "ports": [{"containerPort": 143, "protocol": "UDP"}]}]},
        {"os": {"name": "linux"}},
        {"securityContext": {"sysctls": [{"name": PORT_START, "value": "0"}]}},
    ],
)
def test_what_is_no_conflict(spec: dict[str, Any]) -> None:
    assert carries(put(inject(made(), pod(**spec))))


# --- sysctls -------------------------------------------------------------------


def test_safe_sysctls_join_the_pod_s_own() -> None:
    own = {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}], "fsGroup": 7}
    found = put(inject(made(), pod(securityContext=own)))
    assert found["spec"]["securityContext"]["fsGroup"] == 7
    assert sysctls(found) == [("net.ipv4.tcp_syncookies", "1"), (PORT_START, "143")]


@pytest.mark.parametrize("name", ["net.ipv4.tcp_fin_timeout", "net/ipv4/tcp_fin_timeout"])
def test_the_pod_s_own_value_stays_and_that_is_told(name: str) -> None:
    asked = {"extra": [{"name": "net.ipv4.tcp_fin_timeout", "value": "15"}]}
    found = inject(made(sysctls=asked), pod(securityContext={"sysctls": [{"name": name, "value": "30"}]}))
    assert sysctls(put(found)) == [(name, "30"), (PORT_START, "143")]
    assert isinstance(found, Injected)
    [warning] = found.warnings
    assert "net.ipv4.tcp_fin_timeout=30 stays" in warning


def test_unsafe_sysctls_never_get_into_other_people_s_pods() -> None:
    asked = {"unsafe": "Allow", "extra": [{"name": "net.core.somaxconn", "value": "9999"}]}
    assert sysctls(put(inject(made(sysctls=asked), pod()))) == [(PORT_START, "143")]


def test_with_the_host_s_network_there_are_none() -> None:
    servers = [
        {"name": "imap", "protocol": "imap", "listen": [{"port": 1143, "soKeepalive": {"idle": "5m"}}]}
    ]
    assert sysctls(put(inject(made(servers=servers), pod()))) == [("net.ipv4.tcp_keepalive_time", "300")]
    assert sysctls(put(inject(made(servers=servers), pod(hostNetwork=True)))) == []


# --- UNIX sockets --------------------------------------------------------------

SOCKETS = [{"name": "imap", "protocol": "imap", "listen": [{"address": "unix:/run/mailproxy/imap.sock"}]}]


def mounts(container: Manifest) -> dict[str, str]:
    return {one["mountPath"]: one["name"] for one in container.get("volumeMounts", [])}


def test_the_folder_of_sockets_is_shared_with_every_container() -> None:
    found = put(inject(made(servers=SOCKETS), pod(initContainers=[{"name": "prepare"}])))
    for container in (*found["spec"]["initContainers"], *found["spec"]["containers"]):
        assert mounts(container)["/run/mailproxy"] == "mailproxy-sockets"
    [volume] = [one for one in found["spec"]["volumes"] if one["name"] == "mailproxy-sockets"]
    assert volume["emptyDir"]["medium"] == "Memory"


def test_a_pod_may_say_itself_where_the_sockets_are() -> None:
    own = {"name": "mailproxy-sockets", "emptyDir": {}}
    containers = [{"name": "webmail", "volumeMounts": [{"name": own["name"], "mountPath": "/sockets"}]}]
    found = put(inject(made(servers=SOCKETS), pod(volumes=[own], containers=containers)))
    assert found["spec"]["containers"] == containers
    assert [one for one in found["spec"]["volumes"] if one["name"] == own["name"]] == [own]
    assert mounts(proxy(found))["/run/mailproxy"] == own["name"]


def test_what_a_container_has_there_already_stays() -> None:
    containers = [{"name": "webmail", "volumeMounts": [{"name": "mine", "mountPath": "/run/mailproxy/"}]}]
    found = put(inject(made(servers=SOCKETS), pod(containers=containers)))
    assert found["spec"]["containers"] == containers


def test_an_authorization_service_may_be_a_socket_of_the_pod() -> None:
    mail = {"authHttp": "unix:/run/mailproxy/auth.sock:/auth"}
    found = put(inject(made(mail=mail), pod()))
    assert mounts(found["spec"]["containers"][0])["/run/mailproxy"] == "mailproxy-sockets"


def test_a_volume_of_the_pod_can_be_mounted_in_the_proxy() -> None:
    shared = {"name": "dovecot-run", "emptyDir": {"medium": "Memory"}}
    more = {
        "extraVolumes": [{"name": "dovecot-run", "emptyDir": {}}, {"name": "extra", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "dovecot-run", "mountPath": "/run/dovecot"}],
    }
    found = put(inject(made(pod=more), pod(volumes=[shared])))
    names = [one["name"] for one in found["spec"]["volumes"]]
    assert names.count("dovecot-run") == names.count("extra") == 1
    assert found["spec"]["volumes"][0] == shared
    assert mounts(proxy(found))["/run/dovecot"] == "dovecot-run"


# --- the rest ------------------------------------------------------------------


def test_scraping_is_the_pod_s_own_affair_where_it_says_so() -> None:
    asking = pod()
    asking["metadata"]["annotations"] = {"prometheus.io/port": "8080"}
    own = put(inject(made(), asking))["metadata"]["annotations"]
    assert own["prometheus.io/port"] == "8080"
    assert "prometheus.io/scrape" not in own
    assert put(inject(made(), pod()))["metadata"]["annotations"]["prometheus.io/port"] == "9113"
    silent = made(monitoring={"scrapeAnnotations": False})
    assert list(put(inject(silent, pod()))["metadata"]["annotations"]) == ["mailproxy.dev/template-hash"]


def test_secrets_for_pulling_the_image_are_added() -> None:
    pull = made(imagePullSecrets=[{"name": "ours"}, {"name": "both"}])
    found = put(inject(pull, pod(imagePullSecrets=[{"name": "both"}])))
    assert found["spec"]["imagePullSecrets"] == [{"name": "both"}, {"name": "ours"}]


@pytest.mark.parametrize(
    ("grace", "pause", "is_told"),
    [(None, 5, False), (25, 5, False), (24, 5, True), (5, 4, True), (1, None, True), (0, None, True)],
)
def test_the_pause_before_the_end_fits_into_the_pod_s_grace(
    grace: int | None, pause: int | None, is_told: bool
) -> None:
    asking = pod(**({} if grace is None else {"terminationGracePeriodSeconds": grace}))
    found = inject(made(), asking)
    hooks = proxy(put(found)).get("lifecycle", {})
    assert hooks == ({} if pause is None else {"preStop": {"sleep": {"seconds": pause}}})
    assert isinstance(found, Injected)
    assert any("terminationGracePeriodSeconds" in one for one in found.warnings) is is_told


def test_servers_without_the_pause_do_it_in_the_proxy() -> None:
    old = made(Platform(kube_version=KubeVersion(1, 29)))
    assert "lifecycle" not in proxy(put(inject(old, pod())))


def test_the_digest_changes_with_what_is_put_in_and_not_with_the_configuration() -> None:
    assert made().template_hash == made(workerConnections=99).template_hash
    assert made().config_hash != made(workerConnections=99).config_hash
    assert made().template_hash != made(resources={"limits": {"memory": "1Gi"}}).template_hash
