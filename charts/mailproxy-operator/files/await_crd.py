# SPDX-License-Identifier: Apache-2.0
"""Runs after a first install with MailProxy resources: waits until the API server serves the kind."""

import json
import os
import ssl
import sys
import time
import urllib.request

ACCOUNT = os.environ.get("ACCOUNT_DIR", "/var/run/secrets/kubernetes.io/serviceaccount")
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
SECONDS = 100


def groups(host: str, port: str) -> set[str]:
    """Request the API groups that the API server serves, with the requests that Helm uses."""
    with open(f"{ACCOUNT}/token", encoding="utf-8") as file:
        token = file.read().strip()
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = {"Authorization": f"Bearer {token}", "Accept": AGGREGATED}
    request = urllib.request.Request(f"https://{authority}/apis", headers=headers)
    trust = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    trust.verify_flags &= ~ssl.VERIFY_X509_STRICT  # authorities of clusters often lack key usage
    with urllib.request.urlopen(request, timeout=10, context=trust) as answer:  # noqa: S310  always https
        body = json.load(answer)
    listed = {group["name"] for group in body.get("groups", [])}
    return listed | {item["metadata"]["name"] for item in body.get("items", [])}


def main() -> int:
    """Return 0 when the kind is served, 1 after the timeout."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if "mailproxy.dev" in groups(host, port):
            return 0
        time.sleep(0.5)
    sys.stderr.write(f"the API server does not serve mailproxy.dev after {SECONDS} seconds\n")
    return 1


sys.exit(main())
