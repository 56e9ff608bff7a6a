# SPDX-License-Identifier: Apache-2.0
"""The configuration: directives, manifests, ``nginx.conf``, and the format that the operator renders."""
