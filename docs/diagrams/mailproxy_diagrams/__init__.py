# SPDX-License-Identifier: Apache-2.0
"""Draws the diagrams of the documentation as SVG, from the YAML files in ``docs/diagrams``."""
