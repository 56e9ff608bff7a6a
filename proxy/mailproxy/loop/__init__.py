# SPDX-License-Identifier: Apache-2.0
"""The event loop of a worker: one epoll descriptor for mail sockets and asyncio, and queues of timeouts."""
