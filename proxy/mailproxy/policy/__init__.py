# SPDX-License-Identifier: Apache-2.0
"""The policy server that may refuse or delay logins (``auth_policy_server``), with Dovecot's protocol.

``policy_authenticator`` asks it before and after the authentication service, ``policy_client`` sends the
requests on connections of ``policy_connection``.  ``password_fingerprint`` makes the log's ``pwfp``.
"""
