# SPDX-License-Identifier: Apache-2.0
"""What the tests of the guides share: the blocks of a page, mail servers with them, clients."""
