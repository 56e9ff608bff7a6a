# SPDX-License-Identifier: Apache-2.0
"""State that only running pods have reaches the status without an event and long before a resync."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from support.kube_cluster import Operator
from support.kube_world import World

pytestmark = pytest.mark.kubernetes

A_MINUTE: Final = 60.0
BROKEN: Final = "certificate /etc/mailproxy-refs/secret/mail-tls/tls.crt does not load"


def test_renewed_certificate_that_does_not_load_is_reported(
    idle_world: World, new_operator: Callable[..., Operator]
) -> None:
    world = idle_world
    world.operator = new_operator(f"renewal-{world.namespace}", "--resync=3600")
    world.put()
    made = world.settle()
    digest = made["status"]["configHash"]
    world.report_config(digest, BROKEN)
    is_broken = ("False", "ConfigRejected")
    world.until(lambda: world.condition("ConfigSynced") == is_broken, "the report", timeout=A_MINUTE)
    assert world.condition("ResolvedRefs") == ("False", "InvalidCertificate")
    assert BROKEN in world.message("Ready")
    warnings = [one["type"] for one in world.events() if one["reason"] == "ConfigRejected"]
    assert warnings in ([], ["Warning"])
    world.report_config(digest)
    world.until(lambda: world.condition() == ("True", "Ready"), "the next report", timeout=A_MINUTE)
