# SPDX-License-Identifier: Apache-2.0
"""Pods of other owners are watched by the label that requests injection."""

from __future__ import annotations

from mailproxy_operator.api.kinds import DEPLOYMENT, MAIL_PROXY, POD
from mailproxy_operator.sidecar.inject import Injected, inject
from support.operator_fakekube import FakeKube
from support.operator_running import running, until
from support.sidecars import pod, rendered_sidecar, sidecar_body


async def test_injected_pod_is_counted_when_created() -> None:
    def injected_pods() -> int | None:
        status = (kube.find(MAIL_PROXY, "edge") or {}).get("status", {})
        found: int | None = status.get("replicas")
        return found

    async with FakeKube() as kube:
        kube.put(sidecar_body())
        async with running(kube):
            await until(lambda: injected_pods() == 0)
            found = inject(rendered_sidecar(), pod())
            assert isinstance(found, Injected)
            kube.put(found.pod)
            await until(lambda: injected_pods() == 1)
            kube.remove(POD, "dovecot-0")
            await until(lambda: injected_pods() == 0)
            assert kube.names(DEPLOYMENT) == []
