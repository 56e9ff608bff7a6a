# SPDX-License-Identifier: Apache-2.0
"""Reports of pods become the condition ``UpstreamTLSReady``: each row is a situation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from mailproxy_operator.api.cluster import Key, RunningConfig, UpstreamState
from mailproxy_operator.controller.conditions import Facts, conditions, evaluate_conditions
from mailproxy_operator.controller.observed import Observed, Pod, Workload
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.controller.upstream_tls import EXPIRY_WARNING, upstream_tls
from mailproxy_operator.settings import Platform
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
EDGE: Final = Key("mail", "edge")
IMAP: Final = frozenset({"imap"})


def state(server: str = "imap", failure: str = "", **more: Any) -> UpstreamState:
    word = "failed" if failure else "succeeded"
    values = {"server": server, "state": word, "failure": failure, "upstream": "192.0.2.7:993", **more}
    return UpstreamState(**values)


def pod(*states: UpstreamState, name: str = "a", **more: Any) -> Pod:
    return Pod(name=name, is_ready=True, running=RunningConfig("new", upstreams=states), **more)


GOOD: Final = pod(state())
SOON: Final = NOW + EXPIRY_WARNING - timedelta(seconds=1)


@pytest.mark.parametrize(
    ("pods", "status", "reason"),
    [
        ((), "Unknown", "NoUpstreamTLSYet"),
        ((pod(),), "Unknown", "NoUpstreamTLSYet"),
        ((pod(state(state="unknown")),), "Unknown", "NoUpstreamTLSYet"),
        ((Pod(name="a", is_ready=True),), "Unknown", "NoUpstreamTLSYet"),
        ((pod(state("smtp")),), "Unknown", "NoUpstreamTLSYet"),
        ((GOOD,), "True", "UpstreamTLSEstablished"),
        ((pod(), GOOD), "True", "UpstreamTLSEstablished"),
        ((GOOD, pod(state("smtp", "verify"))), "True", "UpstreamTLSEstablished"),
        ((GOOD, pod(state(failure="verify"))), "False", "UpstreamCertificateNotTrusted"),
        ((GOOD, pod(state(failure="verify"), is_terminating=True)), "True", "UpstreamTLSEstablished"),
        ((pod(state(failure="name")),), "False", "UpstreamNameMismatch"),
        ((pod(state(failure="expired")),), "False", "UpstreamCertificateExpired"),
        ((pod(state(failure="stripped")),), "False", "UpstreamTLSNotOffered"),
        ((pod(state(failure="injected")),), "False", "UpstreamBytesInjected"),
        ((pod(state(failure="protocol")),), "False", "UpstreamTLSIncompatible"),
        ((pod(state(failure="refused")),), "False", "UpstreamTLSRefused"),
        ((pod(state(failure="timeout")),), "False", "UpstreamTLSTimeout"),
        ((pod(state(failure="of a newer version")),), "False", "UpstreamTLSRefused"),
        (
            (pod(state(failure="timeout")), pod(state(failure="name"), name="b")),
            "False",
            "UpstreamNameMismatch",
        ),
        ((pod(state(certificate_expires=SOON)),), "True", "UpstreamCertificateExpiring"),
        ((pod(state(certificate_expires=NOW + EXPIRY_WARNING)),), "True", "UpstreamTLSEstablished"),
        (
            (pod(state(failure="name", certificate_expires=SOON)),),
            "False",
            "UpstreamNameMismatch",
        ),
    ],
)
def test_reports_of_pods_become_a_condition(pods: tuple[Pod, ...], status: str, reason: str) -> None:
    found = upstream_tls(Observed(pods=pods), IMAP, NOW)
    assert found is not None
    assert found[:2] == (status, reason)


def test_resource_without_tls_to_mail_servers_has_no_condition() -> None:
    assert upstream_tls(Observed(pods=(GOOD,)), frozenset(), NOW) is None


def test_message_names_upstream_cause_pod_and_other_servers() -> None:
    failing = pod(state(failure="name", message="x: set proxySslName"), state("pop3", "name", message="y"))
    found = upstream_tls(Observed(pods=(failing,)), frozenset({"imap", "pop3"}), NOW)
    assert found is not None
    assert found[2] == (
        "server imap: 192.0.2.7:993: x: set proxySslName (pod a); logins also fail at server pop3"
    )


def test_condition_is_not_part_of_ready() -> None:
    workload = Workload(desired=1, replicas=1, updated=1, ready=1, available=1)
    observed = Observed(workload=workload, pods=(pod(state(failure="name"), has_started=True),))
    facts = Facts(
        generation=1, mode="Deployment", observed=observed, config_hash="new", tls_servers=IMAP, now=NOW
    )
    found = evaluate_conditions(facts)
    assert found["Ready"].status == "True"
    listed = conditions(found, generation=1, previous=[], now="now")
    types = [one["type"] for one in listed]
    assert types.index("UpstreamTLSReady") == types.index("ConfigSynced") + 1


def failing_cluster(**mail: Any) -> MemoryCluster:
    cluster = MemoryCluster()
    cluster.put(body(replicas=1, mail={"authHttp": "http://auth/", **mail}))
    return cluster


async def reconcile(cluster: MemoryCluster, reconciler: Reconciler, *states: UpstreamState) -> None:
    await reconciler.reconcile(EDGE)
    cluster.roll_out("edge")
    digest = cluster.found_status("edge")["configHash"]
    cluster.running["edge-0"] = RunningConfig(digest, upstreams=states)
    await reconciler.reconcile(EDGE)


async def test_status_follows_reports_and_settings() -> None:
    cluster = failing_cluster(proxySsl="Starttls")
    reconciler = Reconciler(cluster, Platform())
    await reconcile(cluster, reconciler)
    assert cluster.condition("edge", "UpstreamTLSReady") == ("Unknown", "NoUpstreamTLSYet")
    await reconcile(cluster, reconciler, state("imap", "name", message="x"))
    assert cluster.condition("edge", "UpstreamTLSReady") == ("False", "UpstreamNameMismatch")
    assert cluster.condition("edge") == ("True", "Ready")
    await reconcile(cluster, reconciler, state("imap"))
    assert cluster.condition("edge", "UpstreamTLSReady") == ("True", "UpstreamTLSEstablished")
    invalid = body(replicas=1, mail={"authHttp": "http://auth/", "timeout": "soon"})
    cluster.put({**invalid, "status": cluster.found_status("edge")})
    await reconciler.reconcile(EDGE)
    assert cluster.condition("edge", "UpstreamTLSReady") == ("True", "UpstreamTLSEstablished")
    cluster.put({**body(replicas=1), "status": cluster.found_status("edge")})
    await reconciler.reconcile(EDGE)
    types = {one["type"] for one in cluster.found_status("edge")["conditions"]}
    assert "UpstreamTLSReady" not in types
