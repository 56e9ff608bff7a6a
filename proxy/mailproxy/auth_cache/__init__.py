# SPDX-License-Identifier: Apache-2.0
"""The cache of the authentication service's decisions (``auth_cache``)."""
