# SPDX-License-Identifier: Apache-2.0
"""The end-to-end tests' access to a cluster: kubectl, Helm, and pods with mail servers and clients."""
