# SPDX-License-Identifier: Apache-2.0
"""One row of the table."""

from __future__ import annotations

import pytest

from mailproxy_config.model import AuthMethod
from mailproxy_config.value_types import BUFFER, MSEC_TIME, Directive, enum_set, lower_camel_case


@pytest.mark.parametrize(
    ("name", "field"),
    [("timeout", "timeout"), ("auth_http_timeout", "authHttpTimeout"), ("imap_auth", "imapAuth")],
)
def test_the_manifest_s_name(name: str, field: str) -> None:
    assert lower_camel_case(name) == field
    assert Directive(name=name, module="m", type=MSEC_TIME, meaning="A.").field == field


def test_a_name_may_be_another() -> None:
    assert Directive(name="a_b", field="c", module="m", type=MSEC_TIME, meaning="A.").field == "c"


def test_the_built_in_default_is_a_model_value() -> None:
    words = enum_set(("plain",), AuthMethod)
    assert Directive(name="a", module="m", type=words, default=["plain"], meaning="A.").builtin() == {"plain"}
    assert Directive(name="a", module="m", type=words, meaning="A.").builtin() is None


def test_a_mistake_in_the_table_is_noticed() -> None:
    with pytest.raises(ValueError, match="too small"):
        Directive(name="a", module="m", type=BUFFER, default="1", meaning="A.").builtin()
