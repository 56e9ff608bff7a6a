# SPDX-License-Identifier: Apache-2.0
"""The proxy as a sidecar in pods of other workloads, injected by a webhook or manually."""
