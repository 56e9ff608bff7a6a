# SPDX-License-Identifier: Apache-2.0
"""Renders the proxy as a native sidecar for pods of other workloads.

A native sidecar is an init container with ``restartPolicy: Always``: it starts
before the application, ends after it, has ports and probes, and does not prevent
a Job from completing.  This module does not read the pod; ``sidecar.inject`` does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.render.plan import Plan
from mailproxy_operator.render.pod import MARGIN_SECONDS, USER_ID, container, scraping
from mailproxy_operator.render.ports import privileged
from mailproxy_operator.render.volumes import SOCKETS, own_volumes, volume_mounts

PREFIX = "mailproxy-"
"""Prefix of the volume names, to distinguish them from the volumes of the pod."""
SOCKET_VOLUME = f"{PREFIX}{SOCKETS}"
_READABLE = 0o444
"""World-readable: the pod may lack the proxy's group, and only the sidecar mounts these files."""
_TOKEN_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  where Kubernetes mounts it
_NO_TOKEN = f"{PREFIX}no-token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """Everything that is injected into a pod.

    Attributes:
        name: The name of the MailProxy.
        container: The init container.
        volumes: Volumes of the sidecar; the pod must not have other volumes with these names.
        shared: Volumes that the pod may define itself: UNIX sockets, and ``pod.extraVolumes``.
        sysctls: Safe sysctls, by name.
        pull_secrets: Names of the image pull Secrets.
        scraping: Annotations for Prometheus, unless the pod has some already.
        lowest_port: The smallest port that needs a sysctl.
        grace_seconds: The maximum time for the proxy to end.
        template_hash: The hash of all this; pods with another one were created from an older resource.
        config_hash: The hash of the expected configuration.
    """

    name: str
    container: Manifest
    volumes: tuple[Manifest, ...]
    shared: tuple[Manifest, ...]
    sysctls: Mapping[str, str]
    pull_secrets: tuple[str, ...]
    scraping: Mapping[str, str]
    lowest_port: int | None
    grace_seconds: int
    template_hash: str
    config_hash: str

    @property
    def annotations(self) -> dict[str, str]:
        """Annotations that are always set on the pod."""
        return {names.TEMPLATE_HASH: self.template_hash}


def sidecar(plan: Plan) -> Sidecar:
    """Render the sidecar of a resource."""
    deployment = plan.resource.deployment
    own = own_volumes(plan, prefix=PREFIX, mode=_READABLE)
    sockets = [volume for volume in own if volume["name"] == SOCKET_VOLUME]
    ours = [volume for volume in own if volume not in sockets]
    ours.append({"name": _NO_TOKEN, "emptyDir": {"sizeLimit": "1Mi"}})
    shared = (*sockets, *(dict(volume) for volume in deployment.pod.extra_volumes))
    made = _container(plan)
    safe = {one.name: str(one.value) for one in plan.sysctls if one.applied and one.safe}
    content = [made, ours, shared, safe, plan.pull_secrets]
    return Sidecar(
        name=plan.resource.name,
        container=made,
        volumes=tuple(ours),
        shared=shared,
        sysctls=safe,
        pull_secrets=plan.pull_secrets,
        scraping=scraping(plan),
        lowest_port=privileged(plan.ports),
        grace_seconds=math.ceil(deployment.drain.delay)
        + math.ceil(deployment.drain.timeout)
        + MARGIN_SECONDS,
        template_hash=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16],
        config_hash=plan.config_hash,
    )


def _container(plan: Plan) -> Manifest:
    made = container(plan)
    # The security context of the pod is for the application: the container sets all fields itself.
    restricted = {
        **made["securityContext"],
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    # An empty directory at the path where Kubernetes would mount the token of the application's account.
    mounts = [
        *volume_mounts(plan, prefix=PREFIX),
        {"name": _NO_TOKEN, "mountPath": _TOKEN_DIR, "readOnly": True},
    ]
    return {**made, "restartPolicy": "Always", "securityContext": restricted, "volumeMounts": mounts}
