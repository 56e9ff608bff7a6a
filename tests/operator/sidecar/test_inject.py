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
from mailproxy_operator.sidecar.inject import Injected, has_sidecar, inject
from support.sidecars import INJECT, pod, rendered_sidecar

PROXY = "mailproxy.dev/proxy"
PORT_START = "net.ipv4.ip_unprivileged_port_start"


def injected_pod(found: Injected | InjectionRefusal) -> Manifest:
    assert isinstance(found, Injected), found
    return found.pod


def conflict_of(found: Injected | InjectionRefusal) -> tuple[str, str]:
    assert isinstance(found, InjectionRefusal)
    return found.reason, found.message


def sysctls(one: Manifest) -> list[tuple[str, str]]:
    return [(each["name"], each["value"]) for each in one["spec"]["securityContext"].get("sysctls", [])]


def proxy(one: Manifest) -> Manifest:
    return next(each for each in one["spec"]["initContainers"] if each["name"] == "mailproxy")


def test_sidecar_is_first_init_container() -> None:
    requesting_pod = pod(
        initContainers=[{"name": "prepare", "image": "x"}, {"name": "log", "restartPolicy": "Always"}]
    )
    found = injected_pod(inject(rendered_sidecar(), requesting_pod))["spec"]
    assert [one["name"] for one in found["initContainers"]] == ["mailproxy", "prepare", "log"]
    assert found["initContainers"][0]["restartPolicy"] == "Always"
    assert found["containers"] == requesting_pod["spec"]["containers"]


def test_input_pod_is_not_changed() -> None:
    requesting_pod = pod()
    before = copy.deepcopy(requesting_pod)
    assert inject(rendered_sidecar(), requesting_pod) != Injected(before)
    assert requesting_pod == before


def test_container_meets_restricted_standard_by_itself() -> None:
    security = proxy(injected_pod(inject(rendered_sidecar(), pod(securityContext={"runAsUser": 0}))))[
        "securityContext"
    ]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_container_has_probes_ports_configuration_and_secrets() -> None:
    tls = {"authHttp": "http://127.0.0.1:9000/auth", "sslCertificate": [{"secretName": "mail-tls"}]}
    servers = [{"name": "imap", "protocol": "imap", "listen": [{"port": 993, "ssl": True}]}]
    found = injected_pod(inject(rendered_sidecar(mail=tls, servers=servers), pod()))
    container = proxy(found)
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    assert [port["name"] for port in container["ports"]] == ["imap-993", "admin"]
    volumes = {one["name"]: one for one in found["spec"]["volumes"]}
    assert volumes["mailproxy-config"]["configMap"] == {"name": "edge-config", "defaultMode": 0o444}
    [source] = volumes["mailproxy-refs"]["projected"]["sources"]
    assert source["secret"]["name"] == "mail-tls"
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {name for name in volumes if name.startswith("mailproxy-")}


def test_token_of_application_is_not_mounted() -> None:
    mounts = {
        one["mountPath"]: one["name"]
        for one in proxy(injected_pod(inject(rendered_sidecar(), pod())))["volumeMounts"]
    }
    assert mounts["/var/run/secrets/kubernetes.io/serviceaccount"] == "mailproxy-no-token"


def test_second_injection_changes_nothing() -> None:
    once = injected_pod(inject(rendered_sidecar(), pod()))
    assert has_sidecar(once)
    assert inject(rendered_sidecar(workers=4), once) == Injected(once)


def test_pod_gets_the_label_of_its_proxy() -> None:
    assert injected_pod(inject(rendered_sidecar(), pod()))["metadata"]["labels"][PROXY] == "edge"


def test_pod_with_sidecar_but_without_label_gets_label() -> None:
    """For example a pod that an older release, or its ``render --sidecar``, has made."""
    older = injected_pod(inject(rendered_sidecar(), pod()))
    del older["metadata"]["labels"][PROXY]
    before = copy.deepcopy(older)
    again = injected_pod(inject(rendered_sidecar(), older))
    assert again["metadata"]["labels"][PROXY] == "edge"
    assert again["spec"] == before["spec"]
    assert older == before


@pytest.mark.parametrize("label", ["mailproxy.dev/proxy", "mailproxy.dev/inject"])
def test_pod_with_the_label_of_another_proxy_is_not_injected(label: str) -> None:
    """The label may be part of the selector of the workload, so it must not be changed."""
    requesting_pod = pod()
    requesting_pod["metadata"]["labels"][label] = "other"
    reason, message = conflict_of(inject(rendered_sidecar(), requesting_pod))
    assert reason == "LabelConflict"
    assert f"{label}=other" in message
    assert "edge" in message


@given(st.sets(st.sampled_from(["volumes", "initContainers", "securityContext", "labels", "annotations"])))
def test_pod_with_missing_optional_fields_is_injected(missing: set[str]) -> None:
    requesting_pod = pod()
    for name in missing:
        requesting_pod["spec"].pop(name, None)
        requesting_pod["metadata"].pop(name, None)
    found = injected_pod(inject(rendered_sidecar(), requesting_pod))
    assert has_sidecar(found)
    assert found["metadata"]["labels"][INJECT] == "edge"
    assert inject(rendered_sidecar(), found) == Injected(found)


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
            "port 143 is used by container cyrus",
        ),
        (
            {"initContainers": [{"name": "exporter", "ports": [{"containerPort": 9113, "protocol": "TCP"}]}]},
            "PortConflict",
            "port 9113 is used by container exporter",
        ),
        ({"hostNetwork": True}, "HostNetwork", "cannot open port 143"),
        (
            {"securityContext": {"sysctls": [{"name": PORT_START, "value": "1024"}]}},
            "SysctlConflict",
            "does not permit port 143",
        ),
        ({"os": {"name": "windows"}}, "WrongSystem", "windows"),
    ],
)
def test_conflicting_pod_is_not_injected(spec: dict[str, Any], reason: str, message: str) -> None:
    found = conflict_of(inject(rendered_sidecar(), pod(**spec)))
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
def test_compatible_pod_is_injected(spec: dict[str, Any]) -> None:
    assert has_sidecar(injected_pod(inject(rendered_sidecar(), pod(**spec))))


# --- sysctls -------------------------------------------------------------------


def test_safe_sysctls_are_added_to_those_of_pod() -> None:
    own = {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}], "fsGroup": 7}
    found = injected_pod(inject(rendered_sidecar(), pod(securityContext=own)))
    assert found["spec"]["securityContext"]["fsGroup"] == 7
    assert sysctls(found) == [("net.ipv4.tcp_syncookies", "1"), (PORT_START, "143")]


@pytest.mark.parametrize("name", ["net.ipv4.tcp_fin_timeout", "net/ipv4/tcp_fin_timeout"])
def test_own_sysctl_of_pod_is_kept_with_warning(name: str) -> None:
    sysctl_spec = {"extra": [{"name": "net.ipv4.tcp_fin_timeout", "value": "15"}]}
    found = inject(
        rendered_sidecar(sysctls=sysctl_spec),
        pod(securityContext={"sysctls": [{"name": name, "value": "30"}]}),
    )
    assert sysctls(injected_pod(found)) == [(name, "30"), (PORT_START, "143")]
    assert isinstance(found, Injected)
    [warning] = found.warnings
    assert "net.ipv4.tcp_fin_timeout=30 stays" in warning


def test_unsafe_sysctls_are_not_injected() -> None:
    sysctl_spec = {"unsafe": "Allow", "extra": [{"name": "net.core.somaxconn", "value": "9999"}]}
    assert sysctls(injected_pod(inject(rendered_sidecar(sysctls=sysctl_spec), pod()))) == [
        (PORT_START, "143")
    ]


def test_no_sysctls_with_host_network() -> None:
    servers = [
        {"name": "imap", "protocol": "imap", "listen": [{"port": 1143, "soKeepalive": {"idle": "5m"}}]}
    ]
    assert sysctls(injected_pod(inject(rendered_sidecar(servers=servers), pod()))) == [
        ("net.ipv4.tcp_keepalive_time", "300")
    ]
    assert sysctls(injected_pod(inject(rendered_sidecar(servers=servers), pod(hostNetwork=True)))) == []


# --- UNIX sockets --------------------------------------------------------------

SOCKETS = [{"name": "imap", "protocol": "imap", "listen": [{"address": "unix:/run/mailproxy/imap.sock"}]}]


def mounts(container: Manifest) -> dict[str, str]:
    return {one["mountPath"]: one["name"] for one in container.get("volumeMounts", [])}


def test_socket_directory_is_mounted_in_every_container() -> None:
    found = injected_pod(inject(rendered_sidecar(servers=SOCKETS), pod(initContainers=[{"name": "prepare"}])))
    for container in (*found["spec"]["initContainers"], *found["spec"]["containers"]):
        assert mounts(container)["/run/mailproxy"] == "mailproxy-sockets"
    [volume] = [one for one in found["spec"]["volumes"] if one["name"] == "mailproxy-sockets"]
    assert volume["emptyDir"]["medium"] == "Memory"


def test_socket_volume_of_pod_is_used() -> None:
    own = {"name": "mailproxy-sockets", "emptyDir": {}}
    containers = [{"name": "webmail", "volumeMounts": [{"name": own["name"], "mountPath": "/sockets"}]}]
    found = injected_pod(inject(rendered_sidecar(servers=SOCKETS), pod(volumes=[own], containers=containers)))
    assert found["spec"]["containers"] == containers
    assert [one for one in found["spec"]["volumes"] if one["name"] == own["name"]] == [own]
    assert mounts(proxy(found))["/run/mailproxy"] == own["name"]


def test_existing_mount_at_socket_path_is_kept() -> None:
    containers = [{"name": "webmail", "volumeMounts": [{"name": "mine", "mountPath": "/run/mailproxy/"}]}]
    found = injected_pod(inject(rendered_sidecar(servers=SOCKETS), pod(containers=containers)))
    assert found["spec"]["containers"] == containers


def test_auth_service_can_be_unix_socket_in_pod() -> None:
    mail = {"authHttp": "unix:/run/mailproxy/auth.sock:/auth"}
    found = injected_pod(inject(rendered_sidecar(mail=mail), pod()))
    assert mounts(found["spec"]["containers"][0])["/run/mailproxy"] == "mailproxy-sockets"


def test_volume_of_pod_can_be_mounted_in_proxy() -> None:
    shared = {"name": "dovecot-run", "emptyDir": {"medium": "Memory"}}
    more = {
        "extraVolumes": [{"name": "dovecot-run", "emptyDir": {}}, {"name": "extra", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "dovecot-run", "mountPath": "/run/dovecot"}],
    }
    found = injected_pod(inject(rendered_sidecar(pod=more), pod(volumes=[shared])))
    names = [one["name"] for one in found["spec"]["volumes"]]
    assert names.count("dovecot-run") == names.count("extra") == 1
    assert found["spec"]["volumes"][0] == shared
    assert mounts(proxy(found))["/run/dovecot"] == "dovecot-run"


# --- the rest ------------------------------------------------------------------


def test_scrape_annotations_of_pod_are_kept() -> None:
    requesting_pod = pod()
    requesting_pod["metadata"]["annotations"] = {"prometheus.io/port": "8080"}
    own = injected_pod(inject(rendered_sidecar(), requesting_pod))["metadata"]["annotations"]
    assert own["prometheus.io/port"] == "8080"
    assert "prometheus.io/scrape" not in own
    assert (
        injected_pod(inject(rendered_sidecar(), pod()))["metadata"]["annotations"]["prometheus.io/port"]
        == "9113"
    )
    silent = rendered_sidecar(monitoring={"scrapeAnnotations": False})
    assert list(injected_pod(inject(silent, pod()))["metadata"]["annotations"]) == [
        "mailproxy.dev/template-hash"
    ]


def test_image_pull_secrets_are_added() -> None:
    pull = rendered_sidecar(imagePullSecrets=[{"name": "ours"}, {"name": "both"}])
    found = injected_pod(inject(pull, pod(imagePullSecrets=[{"name": "both"}])))
    assert found["spec"]["imagePullSecrets"] == [{"name": "both"}, {"name": "ours"}]


@pytest.mark.parametrize(
    ("grace", "pause", "is_warned"),
    [(None, 5, False), (25, 5, False), (24, 5, True), (5, 4, True), (1, None, True), (0, None, True)],
)
def test_pre_stop_sleep_fits_into_grace_period(grace: int | None, pause: int | None, is_warned: bool) -> None:
    requesting_pod = pod(**({} if grace is None else {"terminationGracePeriodSeconds": grace}))
    found = inject(rendered_sidecar(), requesting_pod)
    hooks = proxy(injected_pod(found)).get("lifecycle", {})
    assert hooks == ({} if pause is None else {"preStop": {"sleep": {"seconds": pause}}})
    assert isinstance(found, Injected)
    assert any("terminationGracePeriodSeconds" in one for one in found.warnings) is is_warned


def test_drain_delay_is_in_proxy_without_sleep_hook() -> None:
    old = rendered_sidecar(Platform(kube_version=KubeVersion(1, 29)))
    assert "lifecycle" not in proxy(injected_pod(inject(old, pod())))


def test_template_hash_changes_with_injection_but_not_with_configuration() -> None:
    assert rendered_sidecar().template_hash == rendered_sidecar(workerConnections=99).template_hash
    assert rendered_sidecar().config_hash != rendered_sidecar(workerConnections=99).config_hash
    assert (
        rendered_sidecar().template_hash
        != rendered_sidecar(resources={"limits": {"memory": "1Gi"}}).template_hash
    )
