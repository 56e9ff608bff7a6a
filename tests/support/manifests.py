# SPDX-License-Identifier: Apache-2.0
"""A configuration file with one server, whose values tests change."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from support.proxy_process import free_port


class Manifest:
    """A configuration file; ``write`` changes its values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = free_port()
        self.values: dict[str, Any] = {}
        self.write()

    def write(self, **values: Any) -> None:
        """Write the file, with these values changed."""
        self.values |= values
        self.path.write_text(self.text())

    def text(self) -> str:
        """Return the current content."""
        values = {
            "name": "imap",
            "server_name": "one",
            "workers": 2,
            "listen": f"{{address: 127.0.0.1, port: {self.port}}}",
            "timeout": "1s",
            "more": "",
            **self.values,
        }
        template = """\
            apiVersion: mailproxy.dev/v1alpha1
            kind: MailProxy
            metadata: {{name: edge, generation: 7}}
            spec:
              workers: {workers}
              drain: {{delay: 0s, timeout: {timeout}}}
              mail: {{authHttp: "http://127.0.0.1:9/auth", serverName: {server_name}}}
              servers:
                - {{name: {name}, protocol: imap, listen: [{listen}]{more}}}
            """
        return textwrap.dedent(template).format(**values)
