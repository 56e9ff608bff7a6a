# SPDX-License-Identifier: Apache-2.0
"""Starts ``mailproxy-operator run``: environment, logging, signals, exit code."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from mailproxy_config.standard_streams import ExitCode
from mailproxy_operator.api.credentials import NoCredentials
from mailproxy_operator.main import operate
from mailproxy_operator.settings import DEFAULT_IMAGE, OperatorSettings, WebhookSettings

NO_CLUSTER_HINT = (
    "It reaches the API server with the service account of its pod, elsewhere with $KUBECONFIG"
    " or ~/.kube/config. Without a cluster, try: mailproxy-operator local --demo"
)
IMAGE_VARIABLE = "MAILPROXY_IMAGE"
NAMESPACE_VARIABLE = "POD_NAMESPACE"


def run_command(options: argparse.Namespace) -> int:
    """Run the operator in the foreground.

    Returns:
        The exit code; 3 when the operator could not start.
    """
    _log_to_standard_error(options.log_format, options.log_level)
    settings = settings_from(options, os.environ)
    try:
        return asyncio.run(operate(settings))
    except (NoCredentials, OSError) as error:
        sys.stderr.write(f"mailproxy-operator cannot start: {error}\n{NO_CLUSTER_HINT}\n")
        return ExitCode.CANNOT_START


def settings_from(options: argparse.Namespace, environment: Mapping[str, str]) -> OperatorSettings:
    """Combine arguments and environment; arguments take precedence."""
    host, port = options.admin
    lease = options.lease_namespace
    return OperatorSettings(
        namespaces=tuple(options.namespace),
        image=options.image or environment.get(IMAGE_VARIABLE) or DEFAULT_IMAGE,
        image_pull_policy=options.image_pull_policy,
        node_min_version=options.node_min_version,
        admin_host=host,
        admin_port=port,
        lease_namespace=environment.get(NAMESPACE_VARIABLE, "") if lease is None else lease,
        lease_name=options.lease_name,
        pod_namespace=environment.get(NAMESPACE_VARIABLE, ""),
        pod_name=environment.get("POD_NAME", ""),
        pod_uid=environment.get("POD_UID", ""),
        image_pull_secrets=tuple(options.image_pull_secret),
        identity=f"{socket.gethostname()}_{os.getpid()}",
        resync_seconds=options.resync,
        webhook=_webhook(options),
    )


def _webhook(options: argparse.Namespace) -> WebhookSettings | None:
    if options.webhook is None:
        return None
    host, port = options.webhook
    return WebhookSettings(
        host=host,
        port=port,
        configuration=options.webhook_configuration,
        certificates=options.webhook_certificates,
        authorities=(options.webhook_certificates and options.webhook_ca_bundle) or "",
        timeout_seconds=options.webhook_timeout,
    )


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to_standard_error(log_format: str, level: str) -> None:
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if log_format == "json" else plain)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # kopf logs every event; the reconciles that events enqueue log the relevant information.
    logging.getLogger("kopf").setLevel(logging.WARNING)
