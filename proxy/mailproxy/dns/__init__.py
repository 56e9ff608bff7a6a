# SPDX-License-Identifier: Apache-2.0
"""Names: who a client is according to the DNS, and where a host that the configuration names can be found.

``Resolver`` performs nginx's ``resolver`` for SMTP clients: reverse look-up,
forward confirmation.  ``HostAddresses`` keeps the addresses of a host name at
hand for who must connect to it.  Nothing in here ever blocks the loop.
"""

from mailproxy.dns.client_name import Resolver
from mailproxy.dns.host import HostAddresses, Target, target_text
from mailproxy.dns.measures import Cancel, WorkerMetrics

__all__ = ["Cancel", "HostAddresses", "Resolver", "Target", "WorkerMetrics", "target_text"]
