# SPDX-License-Identifier: Apache-2.0
"""Name resolution: the host names of SMTP clients, and the addresses of the authentication service.

``Resolver`` implements nginx's ``resolver`` for SMTP clients: a reverse lookup
confirmed by a forward lookup.  ``HostAddresses`` keeps the addresses of a host
name up to date.  Nothing in this package blocks the event loop.
"""

from mailproxy.dns.client_name import Resolver
from mailproxy.dns.host import HostAddresses, Target, target_text
from mailproxy.dns.lookup import Cancel

__all__ = ["Cancel", "HostAddresses", "Resolver", "Target", "target_text"]
