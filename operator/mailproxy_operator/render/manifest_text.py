# SPDX-License-Identifier: Apache-2.0
"""The output of ``mailproxy-operator render``: the objects that the operator applies, as YAML."""

from __future__ import annotations

from typing import Any

import yaml

from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.manifest_yaml import load_documents
from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import Plan, planned, render
from mailproxy_operator.settings import Platform


def rendered_text(text: str, source: str, platform: Platform) -> str:
    """Render every MailProxy in a YAML text.

    Raises:
        ConfigError: It is no YAML, holds no MailProxy, or an invalid one.
    """
    return "".join(_rendered(plan) for plan in plans(text, source, platform))


def plans(text: str, source: str, platform: Platform) -> list[Plan]:
    """Plan every MailProxy in a YAML text.

    Raises:
        ConfigError: It is no YAML, holds no MailProxy, or an invalid one.
    """
    found = [one for one in load_documents(text, source=source) if isinstance(one, dict)]
    bodies = [one for one in found if one.get("kind") == names.KIND]
    if not bodies:
        raise ConfigError([Problem(source, f"holds no resource of kind {names.KIND}")])
    return [planned(Resource.read(body), platform) for body in bodies]


def _rendered(plan: Plan) -> str:
    text = "".join("---\n" + as_yaml(manifest) for manifest in render(plan))
    return text if plan.has_workload else text + _SIDECAR_NOTICE


_SIDECAR_NOTICE = (
    "# The proxy runs in your own pods: without the webhook, `mailproxy-operator render --sidecar`\n"
    "# prints the patch for the template of their workload.\n"
)


class _Dumper(yaml.SafeDumper):
    """Writes multi-line strings as blocks, and repeats shared parts instead of using aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401  PyYAML's signature
        """Disable aliases: they are unusual in manifests."""
        del data
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text_node)


def as_yaml(manifest: Manifest | list[Manifest]) -> str:
    """Return one object or a list as YAML, with fields in the operator's order."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
