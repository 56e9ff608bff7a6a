# SPDX-License-Identifier: Apache-2.0
"""Evaluates the tables of routes and the lists of users of pods: the condition ``RoutesReady``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mailproxy_operator.controller.hourly_events import HourlyEvents, Occurrence
from mailproxy_operator.controller.observed import Observed
from mailproxy_operator.reasons import Reason, RouteEventReason

CONDITION = "RoutesReady"

Found = tuple[str, Reason, str]
"""Status, reason and message of the condition."""
References = Mapping[tuple[str, str], tuple[str, ...]]
"""The fields that refer to an object, by its kind and name."""

_KEPT = "pods use its last valid version until then, and load a corrected one without a restart"
_REJECTED = "the pod keeps its previous configuration, and loads a corrected file without a restart"
_ENDED = "the pod starts when it is corrected"
_MOUNTED = re.compile(r"[^ ]*/(secrets|configmaps)/([^/ ]+)/([^/: ]+)")
_MISSING = "cannot be read: No such file or directory"
_NOT_FOUND = re.compile(r'(secret|configmap)s? "([^"]*)" not found', re.IGNORECASE)
_NO_KEY = re.compile(r"non-existent (secret|config)[a-z ]* key:? ?([-._a-zA-Z0-9]+)", re.IGNORECASE)
_KINDS = {"secret": "Secret", "secrets": "Secret", "configmap": "ConfigMap", "configmaps": "ConfigMap"}
_KINDS |= {"config": "ConfigMap"}


@dataclass(frozen=True, slots=True)
class RouteFiles:
    """The files of a resource.

    Attributes:
        tables: The paths of tables of routes.
        users: The paths of lists of users.
    """

    tables: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.tables or self.users)

    @property
    def keys(self) -> frozenset[tuple[str, str, str]]:
        """Kind, name and key of those in Secrets and ConfigMaps."""
        found = map(_MOUNTED.fullmatch, self.tables | self.users)
        return frozenset((_KINDS[one[1]], one[2], one[3]) for one in found if one)


def routes_ready(observed: Observed, files: RouteFiles | None, references: References) -> Found | None:
    """Evaluate the files.

    Args:
        observed: The pods and what they report.
        files: The files of the resource; ``None`` for an invalid resource that had some.
        references: The fields of the resource that refer to Secrets and ConfigMaps.

    Returns:
        ``None`` for a resource without such files: then there is no such condition.
    """
    if files is not None and not files:
        return None
    files = files or RouteFiles()
    found = _mount_failure(observed, files, references) or _refused(observed, files, references)
    if found:
        return found
    if not observed.reporting_pods:
        return "Unknown", Reason.ROUTES_NOT_REPORTED, "no pod has reported its configuration yet"
    return "True", Reason.ROUTES_LOADED, "pods use the newest tables of routes and lists of users"


def _mount_failure(observed: Observed, files: RouteFiles, references: References) -> Found | None:
    """Return which object or key keeps a pod from its start."""
    for pod in observed.pods:
        message = observed.mount_failures.get(pod.name, "")
        if message and not (pod.has_started or pod.is_terminating):
            found = _no_object(pod.name, message, files, references)
            return found or _no_key_of(pod.name, message, files, references)
    return None


def _no_object(pod: str, message: str, files: RouteFiles, references: References) -> Found | None:
    found = _NOT_FOUND.search(message)
    if found is None:
        return None
    kind, name = _KINDS[found[1].lower()], found[2]
    if all((kind, name) != one[:2] for one in files.keys):
        return None
    advice = f"create it in the MailProxy's namespace, or correct {_field(kind, name, references)}"
    return "False", Reason.ROUTE_OBJECT_NOT_FOUND, f"pod {pod}: no {kind} {name}; {advice}"


def _no_key_of(pod: str, message: str, files: RouteFiles, references: References) -> Found | None:
    found = _NO_KEY.search(message)
    lacking = (_KINDS[found[1].lower()], found[2]) if found else None
    for kind, name, key in sorted(files.keys):
        if (kind, key) == lacking:
            return "False", Reason.ROUTE_KEY_NOT_FOUND, _no_key(pod, kind, name, key, references)
    return None


def _no_key(pod: str, kind: str, name: str, key: str, references: References) -> str:
    field = _field(kind, name, references)
    return f"pod {pod}: {kind} {name} has no key {key}; add it, or correct {field}"


def _field(kind: str, name: str, references: References) -> str:
    fields = [one for one in references.get((kind, name), ()) if ".table." in one or ".authUserFile." in one]
    return ", ".join(fields) or "the field that refers to it"


def _refused(observed: Observed, files: RouteFiles, references: References) -> Found | None:
    for pod, is_table, line, count in _lines(observed):
        return _finding(pod, (line, is_table, count), _KEPT, references)
    for name, error, effect in _errors(observed):
        for path in sorted(files.tables | files.users):
            if f"{path}:" in error:
                line = path + error.partition(path)[2].partition("; ")[0]
                return _finding(name, (line, path in files.tables, 1), effect, references)
    return None


def _errors(observed: Observed) -> Iterator[tuple[str, str, str]]:
    """Yield pods whose proxy refuses its configuration, with the errors and what the pod does."""
    for pod in observed.pods:
        if pod.running is not None and not pod.is_terminating:
            yield pod.name, pod.running.last_error, _REJECTED
        elif not pod.is_terminating:
            yield pod.name, pod.exit_message, _ENDED


def _finding(pod: str, report: tuple[str, bool, int], effect: str, references: References) -> Found:
    line, is_table, count = report
    reason = Reason.ROUTE_TABLE_REFUSED if is_table else Reason.USER_LIST_REFUSED
    at = _MOUNTED.match(line)
    if at and line.endswith(_MISSING):
        message = _no_key(pod, _KINDS[at[1]], at[2], at[3], references)
        return "False", Reason.ROUTE_KEY_NOT_FOUND, f"{message}; {effect}"
    field = f" ({_field(_KINDS[at[1]], at[2], references)})" if at else ""
    return "False", reason, f"pod {pod}: {describe(line, count)}; correct it{field}; {effect}"


def _lines(observed: Observed) -> Iterator[tuple[str, bool, str, int]]:
    """Yield for each file its pod, whether it is a table, its first refused line, and how many there are."""
    for pod in observed.reporting_pods:
        running = pod.running
        for lines, is_table in ((running.route_tables, True), (running.user_files, False)) if running else ():
            by_file: dict[str, list[str]] = {}
            for line in lines:
                by_file.setdefault(_path(line), []).append(line)
            yield from ((pod.name, is_table, found[0], len(found)) for found in by_file.values())


def _path(line: str) -> str:
    return re.split(r":[0-9]+: |: ", line, maxsplit=1)[0]


def describe(line: str, count: int = 1) -> str:
    """Return what a pod reports about a line, with the object in place of the path.

    Args:
        line: ``PATH:LINE: reason``, or ``PATH: reason`` for a whole file.
        count: The number of invalid lines.
    """
    path, number, reason = _split(line)
    at = _MOUNTED.fullmatch(path)
    place = f"{_KINDS[at[1]]} {at[2]}, key {at[3]}" if at else path
    more = f" (invalid lines: {count})" if count > 1 else ""
    return f"{place}{f', line {number}' if number else ''}: {reason}{more}"


def _split(line: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(.*?):(?:([0-9]+):)? (.*)", line)
    return (found[1], found[2] or "", found[3]) if found else (line, "", "is not valid")


class RouteEvents(HourlyEvents):
    """The events about refused files: the same if file, line and what is wrong with it are."""

    def __init__(self) -> None:
        super().__init__(_occurrences)


def _occurrences(observed: Observed) -> Iterator[Occurrence]:
    for _, is_table, line, count in _lines(observed):
        reason = RouteEventReason.ROUTE_TABLE_REFUSED if is_table else RouteEventReason.USER_LIST_REFUSED
        note = f"{describe(line, count)}; correct it: {_KEPT}"
        yield Occurrence(mark=(str(reason), line), reason=str(reason), action="LoadRoutes", note=note)
