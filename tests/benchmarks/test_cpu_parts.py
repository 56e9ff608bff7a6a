# SPDX-License-Identifier: Apache-2.0
"""How samples are divided into kernel, libraries and program; the figures are not tested."""

from __future__ import annotations

import pytest
from benchmarks.cpu_parts import part_of, shares


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("[kernel.kallsyms]", "kernel"),
        ("[vdso]", "kernel"),
        ("libc.so.6", "TLS and C libraries"),
        ("libcrypto.so.3", "TLS and C libraries"),
        ("libpython3.11.so.1.0", "program"),
        ("python3.14", "program"),
        ("_ssl.cpython-314-x86_64-linux-gnu.so", "program"),
        ("nginx", "program"),
        ("ngx_mail_module.so", "program"),
        ("libdovecot.so.0.0.0", "program"),
        ("imap-login", "program"),
    ],
)
def test_file_belongs_to_one_part(file: str, part: str) -> None:
    assert part_of(file) == part


def test_shares_of_all_files_of_a_part_are_added() -> None:
    report = "# comment\n\n    50.00%  [kernel.kallsyms]\n    20.00%  libc.so.6\n 10.00%  nginx\n  0.00%  x\n"
    assert shares(report) == {"kernel": 0.625, "TLS and C libraries": 0.25, "program": 0.125}


def test_report_without_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        shares("# nothing\n")
