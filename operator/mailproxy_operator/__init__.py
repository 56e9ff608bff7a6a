# SPDX-License-Identifier: Apache-2.0
"""The operator: reconciles MailProxy resources to Kubernetes objects and reports their status."""
