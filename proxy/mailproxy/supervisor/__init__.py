# SPDX-License-Identifier: Apache-2.0
"""The supervisor process: starts and replaces workers, reloads, drains, and serves the admin endpoint.

It starts in ``supervisor.run``.  Workers share only ``ipc`` and
``ipc_messages`` with it.
"""
