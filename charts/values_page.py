# SPDX-License-Identifier: Apache-2.0
"""Generates the chart's README, its copy of the CRD, and the reference page of its values.

``python charts/values_page.py`` reads ``values.yaml`` with its comments and
``deploy/crd.yaml``.  In ``values.yaml``, ``# == TITLE`` begins a section, the
comment lines after it are the section's introduction in Markdown, and ``# --``
is the meaning of the next value.  The script writes the chart's README, its copy of the CRD, the part
of ``values.schema.json`` about MailProxy resources, and
``docs/reference/values.md``.  A test fails if one of these files is stale.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from resource_schema import with_resource

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts/mailproxy-operator"
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")
_MARK = "# -- "
_SECTION = "# == "

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

This page lists all values of the chart, by subject. Write those that you change into a file, and pass it to
each installation and upgrade ([install.md](../install.md)):

```sh
helm upgrade --install mailproxy-operator charts/mailproxy-operator \\
  --namespace mailproxy-system --create-namespace -f values.yaml
```

The chart rejects unknown keys, values of the wrong type, and values that contradict each other. Every example
is a complete file of values. A value such as `image.tag` is the key `tag` below the key `image`.

"""


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the chart."""

    path: str
    default: object
    meaning: str


@dataclass(slots=True)
class Section:
    """A subject: its title, its introduction in Markdown, and its values."""

    title: str
    introduction: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The anchor of its heading."""
        return re.sub(r"[^a-z0-9 -]", "", self.title.lower()).replace(" ", "-")

    def examples(self) -> list[str]:
        """Return the files of values in its introduction."""
        return re.findall(r"```yaml\n(.*?)```", "\n".join(self.introduction), re.DOTALL)


def sections(text: str) -> list[Section]:
    """Read the values with their comments, by section.

    Args:
        text: The content of ``values.yaml``.

    Raises:
        IndexError: A value comes before the first section.
        KeyError: The line after a comment is not a key.
    """
    defaults = yaml.safe_load(text)
    found: list[Section] = []
    trail: list[tuple[int, str]] = []
    meaning = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(_SECTION):
            found.append(Section(stripped.removeprefix(_SECTION)))
        elif stripped.startswith(_MARK):
            meaning = stripped.removeprefix(_MARK)
        elif line.startswith("#") and found:
            found[-1].introduction.append(line[2:])
        elif key := _KEY.match(line):
            trail = [*(one for one in trail if one[0] < len(key[1])), (len(key[1]), key[2])]
            path = [name for _, name in trail]
            if meaning:
                found[-1].values.append(Value(".".join(path), _at(defaults, path), meaning))
            meaning = ""
    return found


def values(text: str) -> list[Value]:
    """Read all values.

    Args:
        text: The content of ``values.yaml``.
    """
    return [value for section in sections(text) for value in section.values]


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


def document(listed: list[Section], level: str) -> str:
    """Format the sections as Markdown: a list of links, then each with its introduction and table.

    Args:
        listed: The sections.
        level: The marks of a heading, such as ``##``.
    """
    links = "".join(f"* [{one.title}](#{one.anchor})\n" for one in listed)
    parts = [
        "\n".join([f"{level} {one.title}", "", *one.introduction, "", table(one.values)]) for one in listed
    ]
    return links + "\n" + "\n".join(parts)


def _default(value: object) -> str:
    return json.dumps(value, separators=(", ", ": "))


def pages() -> dict[Path, str]:
    """Generate every file: path to content."""
    listed = sections((CHART / "values.yaml").read_text(encoding="utf-8"))
    crd, schema = (ROOT / "deploy/crd.yaml").read_text(encoding="utf-8"), CHART / "values.schema.json"
    known = with_resource(json.loads(schema.read_text(encoding="utf-8")), yaml.safe_load(crd))
    return {
        CHART / "README.md": _README + document(listed, "###"),
        CHART / "files/crd.yaml": crd,
        schema: json.dumps(known, indent=2) + "\n",
        ROOT / "docs/reference/values.md": _REFERENCE + document(listed, "##"),
    }


if __name__ == "__main__":
    for page, content in pages().items():
        page.write_text(content, encoding="utf-8")
