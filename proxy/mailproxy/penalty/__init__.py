# SPDX-License-Identifier: Apache-2.0
"""Delays and blocks after failed logins (``auth_penalty``, ``auth_failure_delay``, ``auth_block``).

* ``rules``: the state machines of one address, without clocks and memory.
* ``table``, ``pod_state``: their records in the memory that all workers of a pod share.
* ``verdict``: what is a failed login, and what is an outage.
* ``penalty_authenticator``, ``login_attempt``: delay a login, let the logins of one account take turns, and
  record how they ended.
* ``block_check``: whether a client's address is blocked, when it is accepted.

A server without these directives uses none of it.
"""
