# SPDX-License-Identifier: Apache-2.0
"""The event loop of a worker: one epoll, and deadlines that cost little to set."""
