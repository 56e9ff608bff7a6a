# SPDX-License-Identifier: Apache-2.0
"""Real servers on loopback, each with its own directory and process group."""
