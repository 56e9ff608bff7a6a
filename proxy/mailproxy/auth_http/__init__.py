# SPDX-License-Identifier: Apache-2.0
"""The client of the authentication service, over nginx's ``auth_http`` protocol."""
