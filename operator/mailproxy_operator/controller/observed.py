# SPDX-License-Identifier: Apache-2.0
"""The observed state of a MailProxy: filled by ``observe``, evaluated by ``conditions``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mailproxy_operator.api.cluster import RunningConfig
from mailproxy_operator.errors import ReportedCause


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A Deployment or DaemonSet.

    Attributes:
        is_per_node: It runs one pod on each eligible node (a DaemonSet).
        is_current: Its controller has observed the newest generation.
        failures: Conditions that report failures: ``ReplicaFailure``, ``Progressing``.
    """

    desired: int
    replicas: int = 0
    updated: int = 0
    ready: int = 0
    available: int = 0
    may_be_unavailable: int = 0
    is_per_node: bool = False
    is_current: bool = True
    failures: Mapping[str, ReportedCause] = field(default_factory=dict)

    @property
    def is_available(self) -> bool:
        """Whether enough pods serve clients."""
        return self.available >= max(1, self.desired - self.may_be_unavailable)

    @property
    def is_scaled_to_zero(self) -> bool:
        """Whether no pods are desired; false for a DaemonSet without eligible nodes."""
        return self.desired == 0 and not self.is_per_node

    @property
    def is_rolled_out(self) -> bool:
        """Whether all desired pods have the newest template and are available, and there are no others."""
        settled = self.updated >= self.desired and self.replicas <= self.updated
        return self.is_current and settled and self.available >= self.desired


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod.

    Attributes:
        is_of_template: It was created from the newest template.
        has_started: Its container runs or ran, so all volumes were mounted.
        waiting: Why its container does not start.
        exit_message: Why the proxy in it has not started: what it has left in the status of the container.
        unscheduled: Why the scheduler has found no node.
        failed: Why the pod has failed as a whole (``SysctlForbidden``).
        running: Its running configuration; ``None`` when it did not respond.
    """

    name: str
    is_of_template: bool = True
    is_ready: bool = False
    is_terminating: bool = False
    has_started: bool = False
    waiting: ReportedCause | None = None
    exit_message: str = ""
    unscheduled: ReportedCause | None = None
    failed: ReportedCause | None = None
    running: RunningConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The observed state.

    Attributes:
        addresses: The addresses of the Service: (type, value).
        mount_failures: Mount failures by pod.
        without_sidecar: The pods that request a sidecar and run without it.
    """

    workload: Workload | None = None
    pods: tuple[Pod, ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()
    mount_failures: Mapping[str, str] = field(default_factory=dict)
    without_sidecar: tuple[str, ...] = ()

    @property
    def reporting_pods(self) -> tuple[Pod, ...]:
        """The pods that report their configuration and stay."""
        return tuple(pod for pod in self.pods if pod.running is not None and not pod.is_terminating)
