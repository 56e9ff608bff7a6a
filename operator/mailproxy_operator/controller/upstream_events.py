# SPDX-License-Identifier: Apache-2.0
"""Warning events about mail servers at which logins fail until somebody changes the configuration."""

from __future__ import annotations

from collections.abc import Iterator

from mailproxy_operator.controller.hourly_events import HourlyEvents, Occurrence
from mailproxy_operator.controller.observed import Observed
from mailproxy_operator.reasons import UpstreamEventReason


class UpstreamEvents(HourlyEvents):
    """The events of all resources: an error is the same if server, stage and failure are."""

    def __init__(self) -> None:
        super().__init__(_errors)


def _errors(observed: Observed) -> Iterator[Occurrence]:
    for pod in observed.reporting_pods:
        for state in pod.running.upstreams if pod.running else ():
            for error in state.errors:
                yield Occurrence(
                    mark=(state.server, error.stage, error.failure),
                    reason=str(UpstreamEventReason.UPSTREAM_MISCONFIGURED),
                    action="LogIn",
                    note=f"server {state.server}, stage {error.stage}: {error.message}",
                )
