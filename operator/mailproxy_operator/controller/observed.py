# SPDX-License-Identifier: Apache-2.0
"""What was seen of a MailProxy: values that ``gather`` fills and ``conditions`` judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mailproxy_operator.api.cluster import RunningConfig
from mailproxy_operator.errors import ConditionCause


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A Deployment or DaemonSet.

    Attributes:
        is_per_node: It runs a pod on each node that takes one (a DaemonSet).
        is_current: Its controller has seen the newest template.
        failures: Conditions that tell of trouble: ``ReplicaFailure``, ``Progressing``.
    """

    desired: int
    replicas: int = 0
    updated: int = 0
    ready: int = 0
    available: int = 0
    may_be_unavailable: int = 0
    is_per_node: bool = False
    is_current: bool = True
    failures: Mapping[str, ConditionCause] = field(default_factory=dict)

    @property
    def is_available(self) -> bool:
        """Whether enough pods serve clients."""
        return self.available >= max(1, self.desired - self.may_be_unavailable)

    @property
    def is_scaled_to_zero(self) -> bool:
        """Whether no pods are wanted; where no node takes a pod of a DaemonSet, they are."""
        return self.desired == 0 and not self.is_per_node

    @property
    def is_rolled_out(self) -> bool:
        """Whether every pod is of the newest template, and there are no others."""
        settled = self.updated >= self.desired and self.replicas <= self.updated
        return self.is_current and settled and self.available >= self.desired


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod.

    Attributes:
        is_of_template: It was made from the newest template.
        has_started: Its container runs or ran, so everything was mounted.
        waiting: Why its container does not start.
        unscheduled: Why no node takes it.
        failed: Why the pod as a whole was given up (``SysctlForbidden``).
        running: Its configuration; ``None`` when it did not say.
    """

    name: str
    is_of_template: bool = True
    is_ready: bool = False
    is_terminating: bool = False
    has_started: bool = False
    waiting: ConditionCause | None = None
    unscheduled: ConditionCause | None = None
    failed: ConditionCause | None = None
    running: RunningConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything that was seen.

    Attributes:
        addresses: Of the Service: (type, value).
        mount_failures: What could not be mounted, by pod.
        without_sidecar: The pods that ask for a sidecar and run without.
    """

    workload: Workload | None = None
    pods: tuple[Pod, ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()
    mount_failures: Mapping[str, str] = field(default_factory=dict)
    without_sidecar: tuple[str, ...] = ()
