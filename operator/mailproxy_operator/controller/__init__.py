# SPDX-License-Identifier: Apache-2.0
"""From an event to the status: queue, cache, reconcile."""
