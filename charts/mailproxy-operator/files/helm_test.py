# SPDX-License-Identifier: Apache-2.0
"""Runs in `helm test`: checks the operator's endpoints, and that the API server accepts a MailProxy."""

import json
import os
import ssl
import sys
import urllib.request

ACCOUNT = os.environ.get("ACCOUNT_DIR", "/var/run/secrets/kubernetes.io/serviceaccount")
SAMPLE = {
    "apiVersion": "mailproxy.dev/v1alpha1",
    "kind": "MailProxy",
    "metadata": {"name": "helm-test"},
    "spec": {
        "mail": {"serverName": "mail.example.com", "authHttp": "http://auth.example.com/auth"},
        "servers": [{"name": "imap", "listen": [{"port": 143}]}],
    },
}


def credential(name: str) -> str:
    """Read a file of the service account."""
    with open(f"{ACCOUNT}/{name}", encoding="utf-8") as file:
        return file.read()


def check_operator(url: str) -> None:
    """Request the operator's endpoints; raise if one fails."""
    for path in ("/healthz", "/readyz", "/metrics"):
        with urllib.request.urlopen(url + path, timeout=10) as answer:  # noqa: S310  the chart gives the URL
            sys.stdout.write(f"{path} {answer.status}\n")


def apply_sample(host: str, port: str, namespace: str) -> None:
    """Apply a MailProxy as a dry run; raise if the API server rejects it."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    path = f"/apis/mailproxy.dev/v1alpha1/namespaces/{namespace}/mailproxies/helm-test"
    request = urllib.request.Request(
        f"https://{authority}{path}?fieldManager=helm-test&dryRun=All",
        method="PATCH",
        data=json.dumps(SAMPLE).encode(),
        headers={
            "Authorization": f"Bearer {credential('token').strip()}",
            "Content-Type": "application/apply-patch+yaml",
        },
    )
    trust = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    trust.verify_flags &= ~ssl.VERIFY_X509_STRICT  # authorities of clusters often lack key usage
    with urllib.request.urlopen(request, timeout=10, context=trust) as answer:  # noqa: S310  as above
        sys.stdout.write(f"a sample MailProxy, as a dry run: {answer.status}\n")


def main() -> None:
    """Run both checks; a failure ends with a traceback and a failed Job."""
    if os.environ.get("OPERATOR_URL"):
        check_operator(os.environ["OPERATOR_URL"])
    apply_sample(
        os.environ["KUBERNETES_SERVICE_HOST"],
        os.environ["KUBERNETES_SERVICE_PORT"],
        os.environ["SAMPLE_NAMESPACE"],
    )


main()
