# SPDX-License-Identifier: Apache-2.0
"""Telling what happens: meters, the catalogue of metrics, the sum over workers, and the log.

``meter``, ``record`` and ``log`` are what sessions use and import nothing
heavy; ``metrics`` and ``merge`` belong to the supervisor.
"""
