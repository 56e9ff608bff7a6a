# SPDX-License-Identifier: Apache-2.0
"""Manifests for tests: the smallest one that is in order, and any number of larger ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hypothesis import strategies as st

from mailproxy_config.directives import LEVEL_DIRECTIVES

Body = dict[str, Any]
SECRET_KEY: Final = {"secretKeyRef": {"name": "tls-extras", "key": "some.pem"}}


def server(name: Any = "imap", port: Any = 143, **fields: Any) -> Body:
    """Return a server with one listener, or with those in ``listen``."""
    return {"name": name, "listen": [{"port": port}], **fields}


def body(*servers: Body, mail: Any = None, **spec: Any) -> Body:
    """A whole resource; ``authHttp`` is set unless ``mail`` is given."""
    level = {"authHttp": "auth.example:9000"} if mail is None else dict(mail)
    return {
        "apiVersion": "mailproxy.dev/v1alpha1",
        "kind": "MailProxy",
        "metadata": {"name": "edge", "namespace": "mail", "generation": 7, "uid": "u-1"},
        "spec": {"mail": level, "servers": list(servers) or [server()], **spec},
    }


CONN_ZONES: Final = [
    {"zone": "per_user", "key": "$remote_user", "size": "1m"},
    {"zone": "per_addr", "key": "$remote_addr$auth_http_x_class", "size": 65536},
]
REQ_ZONES: Final = [
    {"zone": "guesses", "key": "$remote_addr", "size": "10m", "rate": "10r/m"},
    {"zone": "other", "key": "$domain", "size": "33k", "rate": "2r/s"},
]
# Valid values of every directive that is allowed at both levels.
LEVEL_VALUES: Final[Mapping[str, tuple[Any, ...]]] = {
    "serverName": ("mail.example.com", ""),
    "errorLog": ({"level": "debug"}, {"level": "emerg"}, {}),
    "timeout": ("1m30s", 5, "250ms", "0"),
    "maxErrors": (0, 10),
    "resolver": (
        {"mode": "Disabled"},
        {"mode": "Off"},
        {"mode": "System", "ipv6": False},
        {"addresses": ["127.0.0.1", "[::1]:5353", "ns.example:53"], "valid": "30s", "statusZone": "dns"},
    ),
    "resolverTimeout": ("0", "2s"),
    "authHttp": (
        "localhost:9000/cgi-bin/nginxauth.cgi",
        "http://[::1]:8080/a?b=c",
        "https://auth.example/",
        "unix:/run/auth.sock:/auth",
        "http://127.0.0.1?x=1",
    ),
    "authHttpTimeout": ("3s",),
    "authHttpHeader": (
        [],
        [{"name": "X-Auth-Key", "value": "not so secret"}, {"name": "X-Empty", "value": ""}],
        [{"name": "X-Auth-Key", "valueFrom": {"secretKeyRef": {"name": "auth", "key": "key"}}}],
    ),
    "authHttpPassClientCert": (True, False),
    "authHttpKeepalive": (False, True),
    "authHttpMaxConnections": (1, 4096),
    "authHttpServerNames": (True,),
    "authHttpServerNetworks": (["127.0.0.0/8", "[::1]"], ["10.1.2.3/8", "fe80::/64"]),
    "imapAuth": (["plain", "login"], ["cram-md5", "external", "xoauth2"]),
    "imapCapabilities": ([], ["IMAP4rev1", "QUOTA"]),
    "imapClientBuffer": ("8k", 4096),
    "pop3Auth": (["apop"], ["plain", "external"]),
    "pop3Capabilities": (["TOP"],),
    "pop3ClientBuffer": ("1k", 600),
    "smtpAuth": (["none"], ["login", "plain", "cram-md5"]),
    "smtpCapabilities": (["SIZE 10485760", "8BITMIME"],),
    "smtpClientBuffer": ("128",),
    "smtpGreetingDelay": ("500ms",),
    "proxy": (True,),
    "proxyBuffer": ("16k",),
    "proxyTimeout": ("1d",),
    "proxyPassErrorMessage": (True,),
    "proxySmtpAuth": (True,),
    "proxyProtocol": ("V1", "V2"),
    "xclient": (False,),
    "setRealIpFrom": (["10.0.0.0/8", "unix:", "lb.example"], ["10.1.2.3/8", "2001:db8::/32", "::1"]),
    "starttls": ("Enabled", "Only"),
    "sslCertificate": (
        [{"secretName": "mail-tls"}],
        [{"certificateFile": "/c.pem", "keyFile": "/k.pem"}, {"secretName": "ecdsa"}],
        [{"secretName": "mail-tls"}, {"secretName": "b", "serverNames": ["*.b.example", "b.example"]}],
        [{"secretName": "mail-tls"}, {"secretName": "c", "serverNames": []}],
    ),
    "sslCertificateSelector": ({"matchLabels": {"mail": "yes"}}, {"directory": "/etc/mail/certificates"}),
    "sslRejectHandshake": (True,),
    "sslCertificateCompression": (True,),
    "sslProtocols": (["TLSv1.3"], ["TLSv1", "TLSv1.1", "TLSv1.2"]),
    "sslCiphers": ("ECDHE+AESGCM",),
    "sslPreferServerCiphers": (True,),
    "sslEcdhCurve": ("X25519:prime256v1",),
    "sslDhparam": (SECRET_KEY, {"configMapKeyRef": {"name": "dh", "key": "dh.pem"}}),
    "sslPasswordFile": (SECRET_KEY,),
    "sslSessionCache": (["Disabled"], ["None"], ["builtin"], ["builtin:1000", "shared:SSL:10m"]),
    "sslSessionTimeout": ("10m", "1M"),
    "sslSessionTickets": (False,),
    "sslSessionTicketKey": ([SECRET_KEY, {"file": "/etc/ticket.key"}],),
    "sslVerifyClient": ("Required", "OptionalNoCA"),
    "sslVerifyDepth": (3,),
    "sslClientCertificate": (SECRET_KEY,),
    "sslTrustedCertificate": ({"file": "/etc/ca.pem"},),
    "sslCrl": (SECRET_KEY,),
    "sslConfCommand": ([{"name": "Options", "value": "PrioritizeChaCha"}],),
    "authHttpVariables": (True,),
    "proxySsl": ("Enabled", "Starttls"),
    "proxySslVerify": (False,),
    "proxySslVerifyDepth": (3,),
    "proxySslName": ("imap.example.com", "192.0.2.1", "2001:db8::1"),
    "proxySslServerName": (False,),
    "proxySslTrustedCertificate": (SECRET_KEY, {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}),
    "proxySslCrl": ({"file": "/etc/crl.pem"},),
    "proxySslCertificate": ({"secretName": "client"}, {"certificateFile": "/c.pem", "keyFile": "/k.pem"}),
    "proxySslPasswordFile": (SECRET_KEY,),
    "proxySslProtocols": (["TLSv1.3"],),
    "proxySslCiphers": ("ECDHE+AESGCM",),
    "proxySslSessionReuse": (False,),
    "proxySslAlpn": (["imap"],),
    "proxySmtpGuard": (False,),
    "proxyImapGuard": (True,),
    "oauthStrict": (True,),
    "authMode": ("Http",),
    "authUserFile": ({"secretKeyRef": {"name": "users", "key": "htpasswd"}}, {"file": "/etc/users"}),
    "routes": (
        [],
        [
            {"users": ["Ceo@Example.org", "bob"], "domains": ["*.Example.net"], "upstream": "dovecot"},
            {"table": {"configMapKeyRef": {"name": "moves", "key": "users"}}},
            {"table": {"file": "/etc/moves"}},
            {"domains": ["*"], "upstream": "old"},
        ],
    ),
    "oauthIssuers": (
        [],
        [
            {
                "issuer": "https://id.example/realms/mail",
                "jwksUri": "https://id.example/realms/mail/protocol/openid-connect/certs",
                "audiences": ["mail", "account"],
                "tokenType": "Keycloak",
                "identityClaim": "preferred_username",
                "requireEmailVerified": False,
                "identityDomains": ["example.org", "Example.NET"],
                "allowedClients": ["thunderbird"],
                "allowedAlgorithms": ["ES256", "RS256"],
                "scope": "openid mail",
                "openidConfiguration": "https://id.example/configuration",
                "leeway": 0,
            },
            {
                "issuer": "https://other.example",
                "jwksUri": "http://127.0.0.1:8080/keys",
                "audiences": ["mail"],
                "identityDomains": ["example.com"],
            },
        ],
    ),
    "authPenalty": (True,),
    "authFailureDelay": ("1500ms", 3),
    "authPenaltyExempt": (["192.0.2.0/24", "2001:db8::1"],),
    "authPenaltyMax": (50,),
    # Other blocks depend on the listeners.
    "authBlock": ({"failures": 0, "window": "1m", "for": "30s", "max": "1h"}, {"failures": 0}),
    "imapId": ("Answer", "Ignore"),
    "imapCapabilitiesFrom": ("Upstream", "Static"),
    "imapCapabilityAfterLogin": (True, False),
    "smtpCapabilitiesFrom": ("Upstream", "Static"),
    "sslAlpnStrict": ("Registered", "Nginx"),
    "smtpAuthCommand": (False,),
    "realIpCommand": (True,),
    "maxCommands": (1000, 1),
    "limitRate": ("64k", "1m"),
    "limitRateAfter": ("1m",),
    "proxyId": ("Auto", "Required"),
    "proxyXclient": ("Auto", "Required"),
    "xclientMode": ("Auto", "Required"),
    "proxyConnectTimeout": ("500ms", 5),
    "proxyNextUpstream": ([], ["Connect", "Unavailable"], ["Greeting", "Tls", "Starttls", "Hello"]),
    "proxyNextUpstreamTries": (1, 16),
    "proxyNextUpstreamTimeout": ("1m30s",),
    "proxyProtocolUniqueId": (True,),
    "proxyForward": ([{"name": "site", "value": "a-$protocol"}, {"name": "id", "value": "${session_id}"}],),
    "authHttpFacts": (True,),
    "authHttpOverrides": (True,),
    "proxyTempfail": ("Rfc5530",),
    "proxySmtpHelo": ("Client",),
    "proxyAuth": (["Plain", "Login"], ["Xoauth2", "Native"], ["External", "Oauthbearer", "Plain"]),
    "proxyAuthRequireTls": (True, False),
    "proxyMasterUser": (
        {"user": "proxy", "passwordFrom": SECRET_KEY},
        {"user": "proxy", "passwordFrom": {"file": "/m"}, "separator": "%"},
    ),
    "proxyAuthToken": (
        {
            "tokenUrl": "https://login.example/token",
            "clientId": "app",
            "clientSecretFrom": SECRET_KEY,
            "scope": "a b",
        },
        {
            "tokenUrl": "http://[::1]:8000/token",
            "clientId": "app",
            "grant": "RefreshToken",
            "refreshTokenFrom": {"file": "/r"},
        },
    ),
    "authCache": (
        {"size": "10m"},
        {"size": 0},
        {"size": 65536, "ttl": "1m30s", "negativeTtl": 5, "staleIfError": "7d"},
    ),
    "authCacheKey": ([], ["Address"], ["ServerName", "Destination"]),
    "authPolicyServer": (
        {"url": "http://policy.example:8084/", "nonceFrom": SECRET_KEY},
        {
            "url": "https://policy.example/?a=b&",
            "header": {"name": "X-API-Key", "valueFrom": SECRET_KEY},
            "nonceFrom": {"file": "/nonce"},
            "hashMech": "Sha512",
            "hashTruncate": 0,
            "timeout": "500ms",
            "checkBefore": False,
            "checkAfter": False,
            "report": False,
            "rejectOnFail": True,
        },
    ),
    "logPasswordFingerprint": (True,),
    "proxySslConfCommand": ([{"name": "Options", "value": "PrioritizeChaCha"}],),
    "limitConnZone": (CONN_ZONES,),
    "limitConn": ([], [{"zone": "per_user", "connections": 20}, {"zone": "per_addr", "connections": 65535}]),
    "limitConnLogLevel": ("info", "error"),
    "limitConnDryRun": (True,),
    "limitConnIpv6Prefix": (64, 128),
    "limitConnWords": ("Dovecot", "Freenginx"),
    "limitPreauth": (0, 10),
    "limitReqZone": (REQ_ZONES,),
    "limitReq": (
        [],
        [{"zone": "guesses"}],
        [{"zone": "guesses", "burst": 5, "delay": 2}, {"zone": "other", "burst": 9, "nodelay": True}],
    ),
    "limitReqLogLevel": ("warn", "notice"),
    "limitReqDryRun": (True,),
}
assert LEVEL_VALUES.keys() == {row.field for row in LEVEL_DIRECTIVES}

UPSTREAMS: Final[list[Body]] = [
    {
        "name": "dovecot",
        "servers": [
            {"address": "Dovecot-0.dovecot:143", "weight": 3},
            {"address": "[2001:DB8::1]:143"},
            {"address": "unix:/run/imap.sock", "backup": True},
        ],
        "hash": "User",
        "proxySsl": "Starttls",
        "proxySslTrustedCertificate": {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}},
        "proxySslCertificate": {"secretName": "client"},
        "proxyNextUpstream": ["Connect"],
        "proxyNextUpstreamTimeout": "5s",
        "proxyAuth": ["Plain"],
    },
    {"name": "old", "service": {"name": "old", "namespace": "legacy", "port": 1143}},
]
"""Groups of upstreams to which the routes above lead."""
LISTENERS: Final[tuple[Body, ...]] = (
    {},
    {"address": "*"},
    {"address": "127.0.0.1", "ssl": True},
    {"address": "[::]", "ipv6only": False},
    {"address": "localhost", "proxyProtocol": True, "backlog": 16},
    {"rcvbuf": "256k", "sndbuf": 4096, "multipath": True, "bind": True},
    {"soKeepalive": {"idle": "30m", "interval": "75s", "count": 10}},
    {"soKeepalive": {"enabled": False}},
)
# Fields that make any choice of the values above consistent.
_NEEDED: Final = {
    "authHttp": "auth.example:9000",
    "sslCertificate": [{"secretName": "mail-tls"}],
    "sslClientCertificate": SECRET_KEY,
    "limitConnZone": CONN_ZONES,
    "limitReqZone": REQ_ZONES,
}


@st.composite
def levels(draw: st.DrawFn) -> Body:
    """Some of the directives, each with one of its values."""
    fields = draw(st.lists(st.sampled_from(sorted(LEVEL_VALUES)), unique=True, max_size=12))
    return {field: draw(st.sampled_from(LEVEL_VALUES[field])) for field in fields}


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    """Resources that are in order."""
    servers = []
    for index in range(draw(st.integers(1, 4))):
        listen = [
            {**draw(st.sampled_from(LISTENERS)), "port": 1000 + 16 * index + at}
            for at in range(draw(st.integers(1, 3)))
        ]
        protocol = draw(st.sampled_from(["imap", "pop3", "smtp"]))
        servers.append({"name": f"s{index}", "protocol": protocol, "listen": listen, **draw(levels())})
    spec = {
        "workers": draw(st.sampled_from(["auto", 1, 8])),
        "workerConnections": draw(st.integers(1, 10_000)),
        "errorLog": draw(st.sampled_from([{"level": "info"}, {}])),
        "upstreams": UPSTREAMS,
        "drain": {"delay": draw(st.sampled_from(["0", "1s500ms"]))},
    }
    return body(*servers, mail={**_NEEDED, **draw(levels())}, **spec)
