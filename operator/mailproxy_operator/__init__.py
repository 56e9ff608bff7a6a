# SPDX-License-Identifier: Apache-2.0
"""The operator: MailProxy resources become Kubernetes objects, and say how they are."""
