# SPDX-License-Identifier: Apache-2.0
"""Names: who a client is according to the DNS, and where a host that the configuration names can be found.

``Resolver`` performs nginx's ``resolver`` for SMTP clients: reverse look-up,
forward confirmation.  ``HostAddresses`` keeps the addresses of a host name at
hand for who must connect to it.  Nothing in here ever blocks the loop.
"""

from mailproxy.runtime.resolver.hosts import HostAddresses, Target, target_text
from mailproxy.runtime.resolver.measures import Cancel, Meter
from mailproxy.runtime.resolver.resolver import Resolver

__all__ = ["Cancel", "HostAddresses", "Meter", "Resolver", "Target", "target_text"]
