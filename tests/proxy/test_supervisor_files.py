# SPDX-License-Identifier: Apache-2.0
"""The configuration file is read with a limit, and the files that matter to it are known."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mailproxy.supervisor.config_files import read, referenced
from mailproxy_config.decode import MAX_FILE_BYTES
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import (
    AuthHttpHeader,
    CertificateFiles,
    Protocol,
    ProxyConfig,
    StartTls,
    VerifyClient,
)
from support.configs import server


def test_a_file_is_read_as_far_as_it_may_be_long_and_one_byte_more(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * (MAX_FILE_BYTES + 1000))
    assert len(read(file)) == MAX_FILE_BYTES + 1


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "No such file or directory"), (".", "Is a directory")]
)
def test_what_cannot_be_read_is_a_problem_of_the_file(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / name)
    (problem,) = caught.value.problems
    assert (problem.path, problem.reason) == (str(tmp_path / name), f"cannot be read: {reason}")


def test_certificates_keys_and_header_values_matter() -> None:
    config = ProxyConfig(
        servers=(
            server(
                Protocol.IMAP,
                starttls=StartTls.ENABLED,
                ssl_certificate=(CertificateFiles(certificate="/1.crt", key="/1.key"),),
                ssl_verify_client=VerifyClient.REQUIRED,
                ssl_client_certificate="/ca.crt",
                ssl_session_ticket_key=("/ticket",),
            ),
            server(
                Protocol.POP3,
                ssl_certificate=(CertificateFiles(certificate="/unused.crt", key="/unused.key"),),
                auth_http_header=(
                    AuthHttpHeader(name="X-Key", value_file="/header"),
                    AuthHttpHeader(name="X-Other", value="written"),
                ),
            ),
        )
    )
    assert referenced(config) == set(map(Path, ("/1.crt", "/1.key", "/ca.crt", "/ticket", "/header")))


def test_a_pipe_can_be_checked_but_not_run(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="is not a regular file: run reads it again at every reload"):
        read(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"x" * 10,))
    writer.start()
    assert read(pipe, once=True) == b"x" * 10
    writer.join()
