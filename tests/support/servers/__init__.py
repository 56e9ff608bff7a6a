# SPDX-License-Identifier: Apache-2.0
"""Real servers on loopback, each with a folder and a process group of its own."""
