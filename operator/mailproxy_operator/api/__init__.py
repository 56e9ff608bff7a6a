# SPDX-License-Identifier: Apache-2.0
"""The API server: names, kinds, requests and the Lease."""
