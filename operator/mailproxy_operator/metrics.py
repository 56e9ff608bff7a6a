# SPDX-License-Identifier: Apache-2.0
"""The operator's metrics: the only module that imports the Prometheus client.

Label values come from closed sets, with one exception: the metric of conditions is labelled by
resource, and the number of resources in it is limited.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.controller.reconciler import Outcome
from mailproxy_operator.reasons import Reason

_REASONS: Mapping[str, str] = {
    Reason.INVALID_SPEC: "invalid_spec",
    Reason.LISTENER_CONFLICT: "listener_conflict",
    Reason.NAME_CONFLICT: "name_conflict",
    Reason.INVALID_POD_FIELDS: "invalid_pod_fields",
    Reason.FORBIDDEN: "forbidden",
}
_READY = {"True": "true", "False": "false"}
MAX_RESOURCES = 200
"""The maximum number of resources with series for their conditions: up to 4800 series."""


class Conditions:
    """The conditions of resources as series, as in kube-state-metrics: 1 for the current status.

    When there are more resources than the limit, resources that are not ready come first.
    """

    LABELS = ("namespace", "name", "type", "status")
    STATUSES = ("True", "False", "Unknown")

    def __init__(self) -> None:
        self._conditions_of: dict[Key, dict[str, str]] = {}

    def store(self, key: Key, found: Mapping[str, Mapping[str, str]]) -> None:
        """Store the conditions of a resource."""
        self._conditions_of[key] = {name: str(one.get("status", "")) for name, one in found.items()}

    def forget(self, key: Key) -> None:
        """Remove a resource."""
        self._conditions_of.pop(key, None)

    def describe(self) -> Sequence[Metric]:
        """Return the metrics without series, for the registry."""
        return self._families()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their series."""
        shown, omitted = self._families()
        keys = sorted(
            self._conditions_of, key=lambda key: (self._conditions_of[key].get("Ready") == "True", key)
        )
        for key in keys[:MAX_RESOURCES]:
            for name, current in self._conditions_of[key].items():
                for status in self.STATUSES:
                    shown.add_metric((key.namespace, key.name, name, status), float(status == current))
        omitted.add_metric((), float(max(0, len(keys) - MAX_RESOURCES)))
        yield from (shown, omitted)

    def _families(self) -> list[GaugeMetricFamily]:
        return [
            GaugeMetricFamily(
                "mailproxy_operator_condition",
                f"Conditions of at most {MAX_RESOURCES} resources, first of those that are not ready.",
                labels=list(self.LABELS),
            ),
            GaugeMetricFamily(
                "mailproxy_operator_condition_resources_omitted",
                f"Resources beyond {MAX_RESOURCES}, whose conditions are omitted.",
            ),
        ]


class Metrics:
    """All metrics of the operator, on a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ready: dict[Key, str] = {}
        self._forbidden: set[Key] = set()
        self._refused: dict[Key, str] = {}
        self._conditions = Conditions()
        registry, prefix = self.registry, "mailproxy_operator"
        self._reconciles = Counter(f"{prefix}_reconciles", "Reconciles.", ["result"], registry=registry)
        self._duration = Histogram(
            f"{prefix}_reconcile_duration_seconds", "Duration of reconciles.", registry=registry,
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60),
        )  # fmt: skip
        self._last_success = Gauge(
            f"{prefix}_last_success_timestamp_seconds",
            "Time of the last reconcile that applied a resource or rejected it as invalid.",
            registry=registry,
        )
        self._resources = Gauge(
            f"{prefix}_resources",
            "MailProxy resources by their Ready condition.",
            ["ready"],
            registry=registry,
        )
        self._config_errors = Counter(
            f"{prefix}_config_errors", "Resources that were rejected.", ["reason"], registry=registry
        )
        self._drift = Counter(
            f"{prefix}_drift_repairs",
            "Objects that were repaired after another client had changed or deleted them.",
            ["kind"],
            registry=registry,
        )
        self._prunes = Counter(
            f"{prefix}_prunes",
            "Objects that were deleted because they are no longer rendered.",
            ["kind"],
            registry=registry,
        )
        self._forbidden_sysctls = Gauge(
            f"{prefix}_circuit_breakers_open",
            "Resources with a sysctl that nodes refuse.",
            ["reason"],
            registry=registry,
        )
        self._requests = Counter(
            f"{prefix}_api_requests", "Requests to the API server.", ["verb", "code"], registry=registry
        )
        self._request_duration = Histogram(
            f"{prefix}_api_request_duration_seconds", "Duration of requests to the API server.", ["verb"],
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15),
        )  # fmt: skip
        self._watch_restarts = Counter(
            f"{prefix}_watch_restarts", "Restarts of watches, by reason.", ["reason"], registry=registry
        )
        self._queue = Gauge(f"{prefix}_queue_depth", "Resources waiting for a reconcile.", registry=registry)
        self._admissions = Counter(
            f"{prefix}_sidecar_admissions",
            "Pods that request a sidecar, by the result of their admission.",
            ["result"],
            registry=registry,
        )
        self.is_leader = False
        self._leader = Gauge(f"{prefix}_leader", "1 if this process is the leader.", registry=registry)
        self._set_build_info()
        registry.register(self._conditions)
        self._create_series()

    def _set_build_info(self) -> None:
        build = Gauge(
            "mailproxy_operator_build_info", "Versions of the operator, as labels.",
            ["version", "revision", "python_version", "kopf_version"], registry=self.registry,
        )  # fmt: skip
        package_version = _version("mailproxy")
        # The source revision is the local part of the version: 1.2.0+abc1234.
        revision = package_version.partition("+")[2] or "unknown"
        build.labels(package_version, revision, platform.python_version(), _version("kopf")).set(1)

    def _create_series(self) -> None:
        """Create every series at start, so that the first event is an increase."""
        for result in ("ok", "retry", "hopeless", "error"):
            self._reconciles.labels(result)
        for reason in _REASONS.values():
            self._config_errors.labels(reason)
        for ready in ("true", "false", "unknown"):
            self._resources.labels(ready)
        for result in ("injected", "present", "ignored", "refused", "error"):
            self._admissions.labels(result)
        for reason in ("expired", "closed", "error", "inactive"):
            self._watch_restarts.labels(reason)
        self._forbidden_sysctls.labels("sysctl_forbidden")

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Set the function that returns the number of resources in the queue at each scrape."""
        self._queue.set_function(length)

    def set_leader(self, *, is_leader: bool) -> None:
        """Set whether this process is the leader."""
        self.is_leader = is_leader
        self._leader.set(is_leader)

    def admitted(self, result: str) -> None:
        """Count the result of the admission of a pod that requests a sidecar."""
        self._admissions.labels(result).inc()

    def requested(self, verb: str, code: str, seconds: float) -> None:
        """Count a request to the API server."""
        self._requests.labels(verb, code).inc()
        if verb != "watch":  # the duration of a watch is not a latency
            self._request_duration.labels(verb).observe(seconds)

    def watch_restarted(self, reason: str) -> None:
        """Count a restart of a watch: ``expired``, ``closed``, ``error`` or ``inactive``."""
        self._watch_restarts.labels(reason).inc()

    def reconciled(self, key: Key, outcome: Outcome | None, seconds: float) -> None:
        """Count a reconcile; ``None`` for one that ended with an unexpected exception."""
        self._reconciles.labels(_result(outcome)).inc()
        self._duration.observe(seconds)
        if outcome is None:
            return
        # A rejected resource is an error of its author; the reconcile itself has succeeded.
        if outcome.failed is None:
            self._last_success.set_to_current_time()
        for kind in outcome.drifted:
            self._drift.labels(kind).inc()
        for kind in outcome.pruned:
            self._prunes.labels(kind).inc()
        self._count_refusal(key, outcome)
        self._store_state(key, outcome)

    def _count_refusal(self, key: Key, outcome: Outcome) -> None:
        reason = _REASONS.get(outcome.refused.reason, "") if outcome.refused else ""
        if reason and self._refused.get(key) != reason:
            self._config_errors.labels(reason).inc()
        if reason:
            self._refused[key] = reason
        else:
            self._refused.pop(key, None)

    def _store_state(self, key: Key, outcome: Outcome) -> None:
        conditions = {one["type"]: one for one in outcome.status.get("conditions", [])}
        if outcome.is_gone:
            self._ready.pop(key, None)
            self._conditions.forget(key)
        elif conditions:
            self._conditions.store(key, conditions)
            self._ready[key] = _READY.get(conditions["Ready"]["status"], "unknown")
        is_forbidden = conditions.get("Stalled", {}).get("reason") == Reason.SYSCTL_FORBIDDEN
        (self._forbidden.add if is_forbidden else self._forbidden.discard)(key)
        for ready in ("true", "false", "unknown"):
            self._resources.labels(ready).set(sum(one == ready for one in self._ready.values()))
        self._forbidden_sysctls.labels("sysctl_forbidden").set(len(self._forbidden))

    def exposition(self) -> tuple[bytes, str]:
        """Return the Prometheus exposition: the text and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def _result(outcome: Outcome | None) -> str:
    if outcome is None:
        return "error"
    if outcome.failed is not None:
        return "retry"
    return "hopeless" if outcome.refused else "ok"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
