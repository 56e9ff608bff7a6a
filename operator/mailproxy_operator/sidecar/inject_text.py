# SPDX-License-Identifier: Apache-2.0
"""The output of ``mailproxy-operator render --sidecar``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mailproxy_config.errors import ConfigError, Problem
from mailproxy_operator.render.manifest_text import as_yaml, plans
from mailproxy_operator.render.sidecar import Sidecar, sidecar
from mailproxy_operator.settings import Platform
from mailproxy_operator.sidecar.patch import (
    KINDS,
    Target,
    injected_workloads,
    json_patch,
    strategic_merge,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The request from the command line.

    Attributes:
        target: ``KIND/NAME`` of the workload that a strategic merge patch is for.
        into: Text and name of a file with the workload; the output is the workload with the sidecar.
        as_json_patch: Return the changes of the workload as a JSON patch instead.
    """

    target: str = ""
    into: tuple[str, str] | None = None
    as_json_patch: bool = False


def sidecar_text(text: str, source: str, platform: Platform, request: Request) -> tuple[str, Sequence[str]]:
    """Render the sidecar of a MailProxy.

    Returns:
        The output, and the warnings.

    Raises:
        ConfigError: There is not exactly one MailProxy with ``mode: Sidecar``, or the
            sidecar cannot be injected into the workload.
    """
    found = [plan for plan in plans(text, source, platform) if not plan.has_workload]
    if len(found) != 1:
        raise ConfigError([Problem(source, f"holds {len(found)} MailProxies with mode Sidecar, not one")])
    made = sidecar(found[0])
    if request.into is None:
        # Without a namespace in the manifest, kustomize expects the workload to have none either.
        namespace = str((found[0].resource.manifest.raw.get("metadata") or {}).get("namespace") or "")
        target = replace(_target(request.target, made, source), namespace=namespace)
        return as_yaml(strategic_merge(made, target)), ()
    return _into(made, *request.into, as_json_patch=request.as_json_patch)


def _into(made: Sidecar, text: str, source: str, *, as_json_patch: bool) -> tuple[str, Sequence[str]]:
    pairs, warnings = injected_workloads(made, text, source)
    if not as_json_patch:
        return "".join("---\n" + as_yaml(after) for _, after in pairs), warnings
    changed = [(before, after) for before, after in pairs if before != after]
    if len(changed) > 1:
        raise ConfigError([Problem(source, "holds several workloads; a JSON patch is for one")])
    operations = json_patch(*changed[0]) if changed else []
    return as_yaml(operations), warnings


def _target(text: str, made: Sidecar, source: str) -> Target:
    kind, _, name = text.partition("/") if text else ("Deployment", "/", made.name)
    known = {one.lower(): one for one in KINDS}
    if kind.lower() not in known or not name:
        raise ConfigError([Problem(source, f"{text!r} is not KIND/NAME, with one of {', '.join(KINDS)}")])
    return Target(known[kind.lower()], name)


def read_into(path: Path | None) -> tuple[str, str] | None:
    """Read the file of the workload, if there is one.

    Raises:
        ConfigError: The file cannot be read.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as error:
        raise ConfigError([Problem(str(path), error.strerror or "cannot be read")]) from error
