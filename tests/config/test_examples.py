# SPDX-License-Identifier: Apache-2.0
"""nginx's example configuration, and the converted example of this repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailproxy_config.load import FileKind, load
from mailproxy_config.manifest_yaml import load_documents
from mailproxy_config.nginx.convert import parse_nginx, to_manifest_yaml
from mailproxy_config.rendered import config_hash
from support.configs import without_logs

ROOT = Path(__file__).parents[2]
NGINX = Path(__file__).parent / "data" / "nginx-example.conf"
EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*.yaml"))
EXAMPLE = ROOT / "deploy" / "examples" / "nginx-example.yaml"


def test_converted_example_equals_nginx_example() -> None:
    ours, theirs = load(EXAMPLE.read_bytes()), load(NGINX.read_bytes(), source=str(NGINX))
    assert (ours.kind, theirs.kind) == (FileKind.MANIFEST, FileKind.NGINX)
    assert ours.config == without_logs(theirs.config)
    assert ours.hash == config_hash(without_logs(theirs.config))


def test_example_is_the_output_of_convert() -> None:
    manifest = parse_nginx(NGINX.read_text(), source=str(NGINX), name="nginx-example")
    converted = load_documents(to_manifest_yaml(manifest))[0]
    assert converted["spec"] == load_documents(EXAMPLE.read_text())[0]["spec"]


def test_only_log_file_of_nginx_example_is_not_converted() -> None:
    manifest = parse_nginx(NGINX.read_text(), source="nginx.conf", only_to_print=True)
    assert list(map(str, manifest.notices)) == [
        "nginx.conf:3: logs go to standard error, not to /var/log/nginx/error.log",
        'nginx.conf:11: "auth_http": localhost is the pod itself on Kubernetes; '
        "name a Service, such as http://auth.mail.svc:9000/cgi-bin/nginxauth.cgi",
    ]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads(example: Path) -> None:
    assert load(example.read_bytes()).config.servers
