# SPDX-License-Identifier: Apache-2.0
"""What a conversation is made of: actions, the values they carry, and the line reader."""
