# SPDX-License-Identifier: Apache-2.0
"""The members of the Services that groups of upstreams are (``spec.upstreams[].service``): pure functions."""
