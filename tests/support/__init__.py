# SPDX-License-Identifier: Apache-2.0
"""What the tests share: builders, the dialogue player, fakes of the ports."""
