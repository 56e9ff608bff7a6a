# SPDX-License-Identifier: Apache-2.0
"""The cluster port on one machine: containers become processes, ConfigMaps become files."""
