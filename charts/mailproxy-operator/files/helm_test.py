# SPDX-License-Identifier: Apache-2.0
"""What `helm test` runs: is the operator alive, and does the API server take a MailProxy?"""

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


def ask_the_operator(url: str) -> None:
    """Fail unless the operator answers for itself."""
    for path in ("/healthz", "/readyz", "/metrics"):
        with urllib.request.urlopen(url + path, timeout=10) as answer:  # noqa: S310  the chart gives the URL
            sys.stdout.write(f"{path} {answer.status}\n")


def offer_a_sample(host: str, port: str, namespace: str) -> None:
    """Fail unless the API server would take a MailProxy."""
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
    """Try both; whatever fails ends in a traceback and a failed Job."""
    if os.environ.get("OPERATOR_URL"):
        ask_the_operator(os.environ["OPERATOR_URL"])
    offer_a_sample(
        os.environ["KUBERNETES_SERVICE_HOST"],
        os.environ["KUBERNETES_SERVICE_PORT"],
        os.environ["SAMPLE_NAMESPACE"],
    )


main()
