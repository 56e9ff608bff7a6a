"""What somebody else's pod needs to carry the proxy as a native sidecar.

With ``mode: Sidecar`` the operator has no pods.  ``mailproxy-operator render``
prints this part of a pod's spec, to be merged into the pod it shall serve.
"""

from __future__ import annotations

from mailproxy_operator.kinds import Manifest
from mailproxy_operator.render.plan import Plan
from mailproxy_operator.render.pod import container
from mailproxy_operator.render.volumes import volumes


def pod_spec_part(plan: Plan) -> Manifest:
    """Render the part of a pod's spec: an init container that stays, its volumes, and safe sysctls."""
    part: Manifest = {
        "initContainers": [{**container(plan), "restartPolicy": "Always"}],
        "volumes": volumes(plan),
    }
    # Sysctls belong to the whole pod, so whoever lives in it must at least not be refused for them.
    safe = [{"name": one.name, "value": one.value} for one in plan.sysctls if one.applied and one.safe]
    if safe:
        part["securityContext"] = {"sysctls": safe}
    return part
