# SPDX-License-Identifier: Apache-2.0
"""The HTTP authorization protocol of ``auth_http``, as octets in and values out.

``request`` writes what the service is asked, ``response`` reads what it
answers.  Both are pure: connections, pools and deadlines are the runtime's.
"""

from __future__ import annotations

from mailproxy.auth.request import RequestTemplate
from mailproxy.auth.response import MAX_HEAD, MAX_WAIT, Answer, BodyFraming, InterimAnswer, head_end, parse

__all__ = [
    "MAX_HEAD",
    "MAX_WAIT",
    "Answer",
    "BodyFraming",
    "InterimAnswer",
    "RequestTemplate",
    "head_end",
    "parse",
]
