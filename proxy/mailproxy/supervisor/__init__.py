# SPDX-License-Identifier: Apache-2.0
"""The processes: start workers, replace the fallen, reload, drain, answer the admin endpoint for all of them.

``run`` is the supervisor.  Workers share ``channel`` and ``messages`` with it
and nothing else.
"""
