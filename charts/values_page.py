# SPDX-License-Identifier: Apache-2.0
"""Generates the chart's README, its copy of the CRD, and the reference page of its values.

``python charts/values_page.py`` reads ``values.yaml`` with its comments and
``deploy/crd.yaml``, and writes the chart's README, its copy of the CRD, the part
of ``values.schema.json`` about MailProxy resources, and
``docs/reference/values.md``.  A test fails if one of these files is stale.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from resource_schema import with_resource

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts/mailproxy-operator"
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")
_MARK = "# -- "

_README = """\
# mailproxy-operator

This chart installs the operator of MailProxy, which runs SMTP, IMAP and POP3 proxies with nginx's mail
directives from a custom resource. It needs Kubernetes 1.29 or newer, and Helm 3 or 4.

```sh
helm install mailproxy-operator charts/mailproxy-operator --namespace mailproxy-system --create-namespace
helm test mailproxy-operator --namespace mailproxy-system
```

| You want | See |
|---|---|
| to install | [docs/install.md](../../docs/install.md) |
| to upgrade or uninstall | [docs/upgrading.md](../../docs/upgrading.md) |
| Prometheus and Grafana | [docs/monitoring.md](../../docs/monitoring.md) |

## Values

The chart rejects unknown keys, values of the wrong type, and values that contradict each other.

"""

_REFERENCE = """\
# Values of the Helm chart

Generated from `charts/mailproxy-operator/values.yaml` by `python charts/values_page.py`; do not edit.

This page lists all values of the chart. The chart rejects unknown keys, values of the wrong type, and values
that contradict each other.

"""


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the chart."""

    path: str
    default: object
    meaning: str


def values(text: str) -> list[Value]:
    """Read the values with their comments.

    Args:
        text: The content of ``values.yaml``.

    Raises:
        KeyError: The line after a comment is not a key.
    """
    defaults = yaml.safe_load(text)
    found: list[Value] = []
    trail: list[tuple[int, str]] = []
    meaning = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(_MARK):
            meaning = stripped.removeprefix(_MARK)
            continue
        key = _KEY.match(line)
        if not key:
            continue
        indent = len(key[1])
        trail = [*(one for one in trail if one[0] < indent), (indent, key[2])]
        if meaning:
            path = [name for _, name in trail]
            found.append(Value(".".join(path), _at(defaults, path), meaning))
            meaning = ""
    return found


def _at(tree: Any, path: list[str]) -> object:  # noqa: ANN401  a tree of YAML
    for name in path:
        tree = tree[name]
    return tree


def table(listed: list[Value]) -> str:
    """Format the values as a Markdown table."""
    rows = "".join(
        f"| `{one.path}` | `{_default(one.default)}` | {one.meaning.replace('|', chr(92) + '|')} |\n"
        for one in listed
    )
    return "| Value | Default | Meaning |\n|---|---|---|\n" + rows


def _default(value: object) -> str:
    return json.dumps(value, separators=(", ", ": "))


def pages() -> dict[Path, str]:
    """Generate every file: path to content."""
    listed = table(values((CHART / "values.yaml").read_text(encoding="utf-8")))
    crd, schema = (ROOT / "deploy/crd.yaml").read_text(encoding="utf-8"), CHART / "values.schema.json"
    known = with_resource(json.loads(schema.read_text(encoding="utf-8")), yaml.safe_load(crd))
    return {
        CHART / "README.md": _README + listed,
        CHART / "files/crd.yaml": crd,
        schema: json.dumps(known, indent=2) + "\n",
        ROOT / "docs/reference/values.md": _REFERENCE + listed,
    }


if __name__ == "__main__":
    for page, content in pages().items():
        page.write_text(content, encoding="utf-8")
