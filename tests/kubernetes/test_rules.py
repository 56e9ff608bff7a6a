# SPDX-License-Identifier: Apache-2.0
"""The rules of the custom resource definition: what a real API server accepts and refuses, and its errors.

The configuration loader, which works without a cluster, must accept and refuse the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_operator.crd.resource import Resource
from support.kube_api import Api, Object
from support.kube_cluster import Cluster, manifests
from support.operator_bodies import body

pytestmark = pytest.mark.kubernetes

AUTH: Final = {"authHttp": "http://auth.mail.svc:9000/auth"}
TLS: Final = [{"secretName": "mail-tls"}]
TIME: Final = "must be a time such as 60s, 1m30s, 24h or 500ms; a bare number is seconds"
LONG_TIME: Final = "must be a time such as 30s, 5m or 1d, without milliseconds; a bare number is seconds"
SIZE: Final = "must be a size such as 4k or 10m; a bare number is bytes"
PORTS: Final = (
    "protocol is required unless all ports are well-known ports of the same protocol: "
    "143 993 imap, 110 995 pop3, 25 465 587 smtp"
)
SELECTOR: Final = "exactly one of matchLabels and directory must be set"
TWICE: Final = "two listeners of one server have the same address and port"
EITHER: Final = "a listener has either a port or a unix: address"
UNIX: Final = "address: unix: takes an absolute path of at most 107 bytes"
BRACKETS: Final = "an IPv6 address must be in brackets, and the port in the field port"
IPV6ONLY: Final = "ipv6only needs an IPv6 address in brackets"
KEEPALIVE: Final = "must be between 1s and 32767s, the range of the socket option"
URL: Final = "authHttp must be [http://]host[:port][/path] or an https:// URL"
CERTIFICATE: Final = "set either secretName, or certificateFile together with keyFile"
ONE_FILE: Final = "exactly one of secretKeyRef, configMapKeyRef and file must be set"
NEEDS_TLS: Final = "a server with an ssl listener or starttls needs sslCertificate, its own or in spec.mail"
NEEDS_CA: Final = (
    "servers: sslVerifyClient Required or Optional needs sslClientCertificate or sslTrustedCertificate"
)
NO_SERVICE: Final = "no authHttp: set it in spec.mail or in every server (or authMode Upstream or Static)"
NEEDS_ISSUERS: Final = "authMode Jwt needs oauthIssuers, in spec.mail or in the server"
SHARED_BY_BALANCER: Final = (
    "servers: authBlock with proxyProtocol needs setRealIpFrom; else clients share one address"
)
SHARED_BY_NODES: Final = (
    "authBlock with service.externalTrafficPolicy Cluster would block all clients of a node: use Local, or "
    "proxyProtocol for every listener"
)
CLUSTER: Final = {"service": {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"}}
NEEDS_USERS: Final = "authMode Static needs authUserFile, in spec.mail or in the server"
NEEDS_ROUTES: Final = "authMode Upstream and Static need routes, in spec.mail or in the server"
ONE_TARGET: Final = "must have table alone, or upstream with users, domains or both"
LEADS_NOWHERE: Final = "routes[].upstream must be the name of an item of spec.upstreams"
ROUTES: Final = [{"users": ["bob@example.org"], "domains": ["example.net"], "upstream": "dovecot"}]
GROUP: Final = {"name": "dovecot", "servers": [{"address": "dovecot-0.dovecot:143", "weight": 2}]}
ROUTED: Final = {"mail": {"authMode": "Upstream", "routes": ROUTES}, "upstreams": [GROUP]}
USERS: Final = {"secretKeyRef": {"name": "users", "key": "htpasswd"}}
SAME_PORT: Final = "servers[].listen: two servers listen without ssl on the same port of all IPv4 addresses"
ON_HOST: Final = (
    "servers[].listen[].port: with pod.hostNetwork a process without root cannot open ports below 1024; "
    "use portStrategy HighPort"
)
UNSAFE: Final = (
    "extra names a sysctl outside the kubelet's safe set; that needs unsafe: Allow and a node that allows it"
)
PORT_START: Final = (
    "value: net.ipv4.ip_unprivileged_port_start takes 0 to 32768 "
    "(the low end of net.ipv4.ip_local_port_range)"
)
KEEPALIVE_SYSCTL: Final = "value: net.ipv4.tcp_keepalive_time and _intvl take 1 to 32767 seconds"
BUFFERS: Final = "value: net.ipv4.tcp_rmem and tcp_wmem take three sizes in ascending order: min default max"
HOST_PORT: Final = "listen[].hostPort of servers needs a port; with pod.hostNetwork it is the container port"
NAME: Final = (
    "metadata.name must start with a letter and contain only lower-case letters, digits and hyphens: "
    "a Service is named after it"
)
EXPRESSIONS: Final = "In and NotIn need values; Exists and DoesNotExist take none"


ISSUER: Final[Object] = {
    "issuer": "https://id.example/",
    "jwksUri": "https://id.example/keys",
    "audiences": ["mail"],
}


def mail(**directives: Any) -> Object:
    """Return a spec with these directives at the mail level."""
    return {"mail": {**AUTH, **directives}}


def servers(*blocks: Object) -> Object:
    return {"servers": list(blocks)}


def imap(*listen: Object, **more: Any) -> Object:
    return {"name": "imap", "protocol": "imap", "listen": list(listen), **more}


def listen(**parameters: Any) -> Object:
    return servers(imap({"port": 143, **parameters}))


def extra(name: str, value: str, **more: Any) -> Object:
    return {"sysctls": {"extra": [{"name": name, "value": value}], **more}}


def selector(operator: str, *values: str) -> Object:
    expression = {"key": "app", "operator": operator, **({"values": list(values)} if values else {})}
    return {"mode": "Sidecar", "sidecar": {"selector": {"matchExpressions": [expression]}}}


SECRET: Final = {"secretKeyRef": {"name": "a", "key": "b"}}
POLICY: Final = {"url": "http://policy.mail.svc:8084/", "nonceFrom": SECRET}
TOKEN: Object = {"tokenUrl": "https://login.example/token", "clientId": "app", "clientSecretFrom": SECRET}
CONFIG_MAP: Final = {"configMapKeyRef": {"name": "a", "key": "b"}}

INVALID: Final[list[tuple[Object, str, str]]] = [
    # (spec, the field that the error names, text of the error)
    (
        {"mail": {}},
        "spec",
        "no authHttp: set it in spec.mail or in every server (or authMode Upstream or Static)",
    ),
    (mail(authMode="Jwt"), "spec", NEEDS_ISSUERS),
    ({**mail(), **servers(imap({"port": 143}, authMode="Jwt"))}, "spec", NEEDS_ISSUERS),
    (listen(ssl=True), "spec", NEEDS_TLS),
    (mail(starttls="Enabled"), "spec", NEEDS_TLS),
    (servers(imap({"port": 143}, starttls="Only")), "spec", NEEDS_TLS),
    (mail(starttls="Enabled", sslCertificate=TLS, sslVerifyClient="Required"), "spec", NEEDS_CA),
    (mail(starttls="Only", sslCertificate=TLS, sslVerifyClient="Optional"), "spec", NEEDS_CA),
    (servers(imap({"port": 143}), imap({"port": 143}) | {"name": "b"}), "spec", SAME_PORT),
    (
        servers(imap({"port": 143}), imap({"address": "0.0.0.0", "port": 143}) | {"name": "b"}),
        "spec",
        SAME_PORT,
    ),
    (listen(port=9113), "spec", "servers[].listen[].port: 9113 is the admin port"),
    (
        {"portStrategy": "HighPort", **listen(port=55536)},
        "spec",
        "servers[].listen[].port: with portStrategy HighPort a port is at most 55535",
    ),
    ({"pod": {"hostNetwork": True}}, "spec", ON_HOST),
    (
        {
            "pod": {"hostNetwork": True},
            "portStrategy": "HighPort",
            **extra("net.ipv4.tcp_fin_timeout", "15"),
        },
        "spec",
        "sysctls.extra: with pod.hostNetwork no net.* sysctl can be set",
    ),
    (
        {"mode": "Sidecar", **listen(hostPort=143)},
        "spec",
        "listen[].hostPort of servers needs mode Deployment or DaemonSet",
    ),
    (servers(imap({"port": 143}, {"address": "unix:/a", "hostPort": 143})), "spec", HOST_PORT),
    ({"pod": {"hostNetwork": True}, **listen(port=1143, hostPort=143)}, "spec", HOST_PORT),
    (
        {
            "pod": {"hostNetwork": True},
            "portStrategy": "HighPort",
            **listen(hostPort=143),
        },
        "spec",
        HOST_PORT,
    ),
    ({"mode": "DaemonSet", "autoscaling": {"maxReplicas": 2}}, "spec", "autoscaling needs mode Deployment"),
    (
        {"mode": "Sidecar", "networkPolicy": {"enabled": True}},
        "spec",
        "networkPolicy is not allowed with mode Sidecar: the operator does not own the pods",
    ),
    ({"mail": {"authMode": "Upstream"}}, "spec", NEEDS_ROUTES),
    ({"mail": {"authMode": "Static", "authUserFile": {"file": "/u"}}}, "spec", NEEDS_ROUTES),
    ({**ROUTED, "mail": {**ROUTED["mail"], "authMode": "Static"}}, "spec", NEEDS_USERS),
    ({**ROUTED, "upstreams": [{**GROUP, "name": "old"}]}, "spec", LEADS_NOWHERE),
    (
        {**ROUTED, **servers(imap({"port": 143}, routes=[{**ROUTES[0], "upstream": "x"}]))},
        "spec",
        LEADS_NOWHERE,
    ),
    (
        {**mail(routes=[{**ROUTES[0], "table": {"file": "/t"}}]), "upstreams": [GROUP]},
        "spec.mail.routes[0]",
        ONE_TARGET,
    ),
    (
        {"upstreams": [{**GROUP, "service": {"name": "dovecot"}}]},
        "spec.upstreams[0]",
        "must have servers or service, and not both",
    ),
    (
        mail(serverName="a\r\nb"),
        "spec.mail.serverName",
        "serverName must not contain control characters such as CR or LF",
    ),
    (mail(timeout="soon"), "spec.mail.timeout", TIME),
    (mail(timeout=""), "spec.mail.timeout", TIME),
    (mail(timeout="60 minutes"), "spec.mail.timeout", TIME),
    (mail(proxyTimeout="1m1h"), "spec.mail.proxyTimeout", TIME),
    (mail(authHttpTimeout="-1s"), "spec.mail.authHttpTimeout", TIME),
    (servers(imap({"port": 143}, smtpGreetingDelay="1y")), "spec.servers[0].smtpGreetingDelay", TIME),
    (mail(resolver={"mode": "System", "valid": "10ms"}), "spec.mail.resolver.valid", LONG_TIME),
    (mail(sslSessionTimeout="soon"), "spec.mail.sslSessionTimeout", LONG_TIME),
    (mail(resolver={}), "spec.mail.resolver", "resolver takes either addresses or mode (Disabled, System)"),
    (
        mail(resolver={"mode": "System", "addresses": ["192.0.2.1"]}),
        "spec.mail.resolver",
        "resolver takes either addresses or mode (Disabled, System)",
    ),
    (
        mail(resolver={"mode": "System", "ipv4": False, "ipv6": False}),
        "spec.mail.resolver",
        "resolver: ipv4 and ipv6 cannot both be false",
    ),
    ({"mail": {"authHttp": "ftp://a/b"}}, "spec.mail.authHttp", URL),
    (
        {"mail": {"authHttp": "http://a/\nb"}},
        "spec.mail.authHttp",
        "authHttp must not contain control characters such as CR or LF",
    ),
    (
        mail(proxyAuth=["Plain", "Plain"]),
        "spec.mail.proxyAuth",
        "each mechanism may be listed once",
    ),
    (
        mail(proxyMasterUser={"user": "a\nb", "passwordFrom": {"file": "/m"}}),
        "spec.mail.proxyMasterUser.user",
        "the name of a master user must not contain control characters such as CR or LF",
    ),
    (
        mail(proxyMasterUser={"user": "a", "passwordFrom": {**SECRET, "file": "/m"}}),
        "spec.mail.proxyMasterUser.passwordFrom",
        "exactly one of secretKeyRef and file must be set",
    ),
    (
        mail(authPolicyServer={**POLICY, "nonceFrom": {}}),
        "spec.mail.authPolicyServer.nonceFrom",
        "exactly one of secretKeyRef and file must be set",
    ),
    (mail(authPolicyServer={**POLICY, "timeout": "2x"}), "spec.mail.authPolicyServer.timeout", TIME),
    (
        mail(proxyAuthToken={**TOKEN, "tokenUrl": "http://login.example/token"}),
        "spec.mail.proxyAuthToken.tokenUrl",
        "must begin with https://; http:// is allowed for a loopback address only",
    ),
    (
        mail(proxyAuthToken={**TOKEN, "clientId": "a\rb"}),
        "spec.mail.proxyAuthToken.clientId",
        "a client identifier must not contain control characters such as CR or LF",
    ),
    (
        mail(proxyAuthToken={**TOKEN, "scope": "a\nb"}),
        "spec.mail.proxyAuthToken.scope",
        "a scope must not contain control characters such as CR or LF",
    ),
    (
        mail(proxyAuthToken={**TOKEN, "grant": "RefreshToken"}),
        "spec.mail.proxyAuthToken",
        "grant RefreshToken needs refreshTokenFrom; ClientCredentials needs clientSecretFrom and takes no "
        "refreshTokenFrom",
    ),
    (
        mail(authHttpHeader=[{"name": "X"}]),
        "spec.mail.authHttpHeader[0]",
        "exactly one of value and valueFrom must be set",
    ),
    (
        mail(authHttpHeader=[{"name": "X", "value": "a\nb"}]),
        "spec.mail.authHttpHeader[0].value",
        "a header value must not contain control characters such as CR or LF",
    ),
    (
        mail(imapCapabilities=["IDLE\r\n"]),
        "spec.mail.imapCapabilities[0]",
        "a capability must not contain control characters such as CR or LF",
    ),
    (
        mail(proxySslAlpn=["imap\r\n"]),
        "spec.mail.proxySslAlpn[0]",
        "an application protocol must not contain control characters such as CR or LF",
    ),
    (mail(proxyBuffer="4 k"), "spec.mail.proxyBuffer", SIZE),
    (mail(imapClientBuffer="4g"), "spec.mail.imapClientBuffer", SIZE),
    (listen(rcvbuf="much"), "spec.servers[0].listen[0].rcvbuf", SIZE),
    (mail(sslCertificate=[{}]), "spec.mail.sslCertificate[0]", CERTIFICATE),
    (mail(sslCertificate=[{"certificateFile": "/a"}]), "spec.mail.sslCertificate[0]", CERTIFICATE),
    (
        mail(sslCertificate=[{"secretName": "a", "certificateFile": "/a", "keyFile": "/b"}]),
        "spec.mail.sslCertificate[0]",
        CERTIFICATE,
    ),
    (mail(sslDhparam={}), "spec.mail.sslDhparam", ONE_FILE),
    (mail(sslCrl={**SECRET, "file": "/a"}), "spec.mail.sslCrl", ONE_FILE),
    (mail(sslClientCertificate={**SECRET, **CONFIG_MAP}), "spec.mail.sslClientCertificate", ONE_FILE),
    (mail(sslSessionTicketKey=[{}]), "spec.mail.sslSessionTicketKey[0]", ONE_FILE),
    (mail(sslCertificateSelector={}), "spec.mail.sslCertificateSelector", SELECTOR),
    (
        mail(sslCertificateSelector={"matchLabels": {"a": "b"}, "directory": "/certificates"}),
        "spec.mail.sslCertificateSelector",
        SELECTOR,
    ),
    (
        mail(sslCertificateSelector={"matchLabels": {}}),
        "spec.mail.sslCertificateSelector",
        "matchLabels must have at least one label",
    ),
    (servers({"name": "a", "listen": [{"port": 1143}]}), "spec.servers[0].protocol", PORTS),
    (servers({"name": "a", "listen": [{"port": 143}, {"port": 110}]}), "spec.servers[0].protocol", PORTS),
    (servers({"name": "a", "listen": [{"address": "unix:/a"}]}), "spec.servers[0].protocol", PORTS),
    (servers(imap({"port": 143}, {"port": 143})), "spec.servers[0].listen", TWICE),
    (servers(imap({"port": 143}, {"address": "*", "port": 143})), "spec.servers[0].listen", TWICE),
    (
        servers(imap({"address": "[::1]", "port": 143}, {"address": "[::1]", "port": 143})),
        "spec.servers[0].listen",
        TWICE,
    ),
    (servers(imap({"address": "192.0.2.1"})), "spec.servers[0].listen[0]", EITHER),
    (listen(address="unix:/a"), "spec.servers[0].listen[0]", EITHER),
    (servers(imap({"address": "unix:a"})), "spec.servers[0].listen[0].address", UNIX),
    (servers(imap({"address": f"unix:/{'a' * 107}"})), "spec.servers[0].listen[0].address", UNIX),
    (listen(address="::1"), "spec.servers[0].listen[0].address", BRACKETS),
    (listen(address="192.0.2.1:143"), "spec.servers[0].listen[0].address", BRACKETS),
    (listen(address="[::1]:143"), "spec.servers[0].listen[0].address", BRACKETS),
    (listen(ipv6only=True), "spec.servers[0].listen[0].ipv6only", IPV6ONLY),
    (listen(address="192.0.2.1", ipv6only=False), "spec.servers[0].listen[0].ipv6only", IPV6ONLY),
    (
        listen(soKeepalive={}),
        "spec.servers[0].listen[0].soKeepalive",
        "soKeepalive: set enabled, or at least one of idle, interval and count",
    ),
    (
        listen(soKeepalive={"enabled": False, "count": 3}),
        "spec.servers[0].listen[0].soKeepalive",
        "soKeepalive: idle, interval and count are not allowed with enabled: false",
    ),
    (listen(soKeepalive={"idle": "0s"}), "spec.servers[0].listen[0].soKeepalive.idle", KEEPALIVE),
    (listen(soKeepalive={"idle": "10h"}), "spec.servers[0].listen[0].soKeepalive.idle", KEEPALIVE),
    (listen(soKeepalive={"interval": "32768"}), "spec.servers[0].listen[0].soKeepalive.interval", KEEPALIVE),
    (listen(soKeepalive={"idle": "99999999999h"}), "spec.servers[0].listen[0].soKeepalive.idle", KEEPALIVE),
    (
        {"autoscaling": {"minReplicas": 3, "maxReplicas": 2}},
        "spec.autoscaling",
        "minReplicas must not be greater than maxReplicas",
    ),
    (
        {"service": {"externalTrafficPolicy": "Local"}},
        "spec.service",
        "externalTrafficPolicy needs type LoadBalancer or NodePort",
    ),
    ({**mail(authBlock={}), **CLUSTER, **listen()}, "spec", SHARED_BY_NODES),
    ({**mail(authBlock={"failures": 5}), **listen(proxyProtocol=True)}, "spec", SHARED_BY_BALANCER),
    (
        {"service": {"nodePorts": [{"port": 143, "nodePort": 30143}]}, **listen()},
        "spec.service.nodePorts",
        "nodePorts needs type NodePort or LoadBalancer",
    ),
    (extra("net.core.somaxconn", "9000"), "spec.sysctls", UNSAFE),
    (extra("net.ipv4.ip_unprivileged_port_start", "32769"), "spec.sysctls.extra[0].value", PORT_START),
    (extra("net.ipv4.tcp_keepalive_time", "0"), "spec.sysctls.extra[0].value", KEEPALIVE_SYSCTL),
    (extra("net.ipv4.tcp_keepalive_intvl", "1 2"), "spec.sysctls.extra[0].value", KEEPALIVE_SYSCTL),
    (
        extra("net.ipv4.tcp_keepalive_probes", "128"),
        "spec.sysctls.extra[0].value",
        "value: net.ipv4.tcp_keepalive_probes takes 1 to 127",
    ),
    (extra("net.ipv4.tcp_rmem", "4096 131072"), "spec.sysctls.extra[0].value", BUFFERS),
    (extra("net.ipv4.tcp_wmem", "3 2 1"), "spec.sysctls.extra[0].value", BUFFERS),
    (extra("net.ipv4.tcp_wmem", "1 2 2147483648"), "spec.sysctls.extra[0].value", BUFFERS),
    (
        {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}},
        "spec.podDisruptionBudget",
        "set only one of minAvailable and maxUnavailable",
    ),
    (selector("In"), "spec.sidecar.selector.matchExpressions[0]", EXPRESSIONS),
    (selector("Exists", "a"), "spec.sidecar.selector.matchExpressions[0]", EXPRESSIONS),
]

MISTYPED: Final[list[tuple[Object, str, str]]] = [
    (mail(starttls=True), "spec.mail.starttls", "must be of type string"),
    (mail(xclient="on"), "spec.mail.xclient", "must be of type boolean"),
    (mail(maxErrors="5"), "spec.mail.maxErrors", "must be of type integer"),
    (mail(maxErrors=-1), "spec.mail.maxErrors", "should be greater than or equal to 0"),
    (mail(maxErrors=2**31), "spec.mail.maxErrors", "should be less than or equal to 2147483647"),
    (mail(timeout=-1), "spec.mail.timeout", "should be greater than or equal to 0"),
    (mail(resolver={"mode": False}), "spec.mail.resolver.mode", "must be of type string"),
    (mail(starttls="Sometimes"), "spec.mail.starttls", 'supported values: "Disabled", "Enabled", "Only"'),
    (mail(imapAuth=["apop"]), "spec.mail.imapAuth[0]", "Unsupported value"),
    (mail(setRealIpFrom=["a" * 300]), "spec.mail.setRealIpFrom[0]", "Too long"),
    (listen(port=0), "spec.servers[0].listen[0].port", "should be greater than or equal to 1"),
    (listen(port=65536), "spec.servers[0].listen[0].port", "should be less than or equal to 65535"),
    (listen(soKeepalive={"idle": 32768}), "spec.servers[0].listen[0].soKeepalive.idle", "less than or equal"),
    (listen(soKeepalive={"count": 128}), "spec.servers[0].listen[0].soKeepalive.count", "less than or equal"),
    (listen(soKeepalive={"idle": "soon"}), "spec.servers[0].listen[0].soKeepalive.idle", "should match"),
    (servers(), "spec.servers", "should have at least 1 items"),
    (servers(imap({"port": 143}), imap({"port": 993})), "spec.servers[1]", "Duplicate value"),
    ({**ROUTED, "upstreams": [GROUP, GROUP]}, "spec.upstreams[1]", "Duplicate value"),
    ({"workers": "many"}, "spec.workers", "should match '^auto$'"),
    ({"workers": 0}, "spec.workers", "should be greater than or equal to 1"),
    ({"replicas": -1}, "spec.replicas", "should be greater than or equal to 0"),
    ({"mode": "StatefulSet"}, "spec.mode", "Unsupported value"),
    (extra("net/ipv4/tcp_fin_timeout", "1"), "spec.sysctls.extra[0].name", "should match"),
    (
        mail(oauthIssuers=[{**ISSUER, "jwksUri": "http://id.example/keys"}]),
        "spec.mail.oauthIssuers[0].jwksUri",
        "should match",
    ),
    (
        mail(oauthIssuers=[{**ISSUER, "allowedAlgorithms": ["HS256"]}]),
        "spec.mail.oauthIssuers[0].allowedAlgorithms[0]",
        "Unsupported value",
    ),
    (mail(oauthIssuers=[{"issuer": "https://id.example/"}]), "spec.mail.oauthIssuers[0].jwksUri", "Required"),
]
"""Refused by types alone: no rule is evaluated."""

VALID: Final[list[Object]] = [
    {},
    ROUTED,
    {
        **ROUTED,
        "upstreams": [
            {"name": "dovecot", "service": {"name": "dovecot", "port": 143}, "proxySsl": "Starttls"}
        ],
    },
    {**ROUTED, **servers(imap({"port": 143}, routes=[{"table": CONFIG_MAP}]))},
    mail(authMode="Jwt", oauthIssuers=[ISSUER]),
    mail(authMode="Jwt", oauthIssuers=[{**ISSUER, "jwksUri": "http://[::1]:8080/keys", "scope": "a b"}]),
    {**mail(oauthIssuers=[ISSUER]), **servers(imap({"port": 143}, authMode="Jwt"))},
    {**mail(authMode="Jwt"), **servers(imap({"port": 143}, authMode="Http"))},
    {**ROUTED, "mail": {**ROUTED["mail"], "authMode": "Static", "authUserFile": USERS}},
    mail(timeout=60, proxyTimeout="1d", smtpGreetingDelay="500ms", authHttpTimeout="1m30s"),
    mail(timeout="60", resolverTimeout="1w2d"),
    mail(imapClientBuffer=4096, proxyBuffer="4k", smtpClientBuffer="1M"),
    mail(resolver={"mode": "Off"}),
    mail(resolver={"mode": "Disabled"}),
    mail(resolver={"addresses": ["127.0.0.1", "[::1]:5353"], "valid": "30s", "ipv6": False}),
    mail(authHttpHeader=[{"name": "X-Key", "valueFrom": SECRET}, {"name": "X", "value": ""}]),
    mail(proxyAuth=["Xoauth2"], proxyAuthToken=TOKEN),
    mail(proxyAuthToken={**TOKEN, "tokenUrl": "http://127.0.0.1:8080/token"}),
    mail(proxyAuthToken={**TOKEN, "tokenUrl": "http://[::1]/token"}),
    mail(proxyMasterUser={"user": "proxy", "passwordFrom": SECRET, "separator": "%"}),
    mail(authPolicyServer=POLICY, logPasswordFingerprint=True),
    mail(authPolicyServer={**POLICY, "header": {"name": "X-API-Key", "valueFrom": SECRET}, "timeout": 2}),
    {"mail": {"authHttp": "https://auth.example.com/mail"}},
    {"mail": {"authHttp": "auth:9000/auth"}},
    {"mail": {}, **servers(imap({"port": 143}, **AUTH))},
    servers({"name": "a", "listen": [{"port": 143}, {"port": 993}]}),
    servers({"name": "a", "listen": [{"port": 25}, {"port": 465}, {"port": 587}]}),
    servers(imap({"address": "unix:/run/mailproxy/imap.sock"}, {"address": f"unix:/{'a' * 106}"})),
    servers(imap({"port": 143}, {"address": "[::]", "port": 143, "ipv6only": True})),
    servers(imap({"address": "192.0.2.1", "port": 143}, {"address": "192.0.2.2", "port": 143})),
    listen(soKeepalive={"enabled": False}),
    listen(soKeepalive={"enabled": True, "idle": "30m", "interval": 75, "count": 10}),
    listen(soKeepalive={"idle": "9h6m7s"}),
    listen(backlog=511, rcvbuf="256k", sndbuf=1024, bind=True, proxyProtocol=True),
    {**mail(sslCertificate=TLS), **listen(ssl=True)},
    mail(starttls="Only", sslCertificate=TLS, sslVerifyClient="Required", sslClientCertificate=SECRET),
    mail(sslCertificate=[{"certificateFile": "/a", "keyFile": "/b"}], sslDhparam={"file": "/d"}),
    {"portStrategy": "HighPort", **listen(port=55535)},
    {"portStrategy": "HighPort", **listen(port=9113)},
    {"portStrategy": "HighPort", "pod": {"hostNetwork": True}},
    {"pod": {"hostNetwork": True}, **listen(port=1143)},
    listen(hostPort=143),
    {"mode": "DaemonSet", **listen(hostPort=10143)},
    {"pod": {"hostNetwork": True}, **listen(port=1143, hostPort=1143)},
    {"pod": {"hostNetwork": True}, "portStrategy": "HighPort", **listen(hostPort=10143)},
    {"service": {"type": "NodePort", "nodePorts": [{"port": 143, "nodePort": 30143}]}, **listen()},
    {"workers": "auto"},
    {"workers": 4, "workerConnections": 10},
    extra("net.core.somaxconn", "9000", unsafe="Allow"),
    extra("net.ipv4.tcp_rmem", "4096 131072 33554432"),
    extra("net.ipv4.ip_local_port_range", "1024 65535"),
    {"service": {"type": "NodePort", "externalTrafficPolicy": "Local"}},
    mail(authPenalty=True, authFailureDelay="1500ms", authPenaltyExempt=["192.0.2.0/24"], authPenaltyMax=50),
    {**mail(authBlock={"failures": 0}), **CLUSTER, **listen()},
    {**mail(authBlock={"for": "1m"}, setRealIpFrom=["10.0.0.1"]), **CLUSTER, **listen(proxyProtocol=True)},
    {"service": {"type": "LoadBalancer", "annotations": {"a.example/b": "c"}}},
    {"autoscaling": {"minReplicas": 2, "maxReplicas": 2, "targetConnectionsPerPod": 2000}},
    {"podDisruptionBudget": {"maxUnavailable": "50%"}},
    {"podDisruptionBudget": {"minAvailable": 1}},
    {"mode": "DaemonSet", "pod": {"tolerations": [{"operator": "Exists"}]}},
    {"mode": "Sidecar"},
    selector("In", "a"),
    selector("Exists"),
    {"drain": {"delay": 0, "timeout": "1h"}},
    {"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
]

NAMES: Final = [
    ("a" * 51, "metadata.name must be no longer than 50 characters"),
    ("a" * 63, "metadata.name must be no longer than 50 characters"),
    ("1mail", NAME),
    ("mail.example", NAME),
]


@pytest.fixture(scope="module")
def api(real: Cluster) -> Api:
    _ = real.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mail"}}).checked_body
    return real.api


def create_dry_run(api: Api, spec: Object, name: str = "edge") -> tuple[list[Object], str]:
    """Create a resource; return the causes of the API server's refusal, and its message."""
    made = {**body(**spec), "metadata": {"name": name, "namespace": "mail"}}
    response = api.create(made, dryRun="All", fieldValidation="Strict")
    if response.status == 201:
        return [], ""
    assert response.status == 422, response
    return list(response.body["details"]["causes"]), response.message


def is_valid_for_loader(spec: Object, name: str = "edge") -> bool:
    made = body(**spec)
    made["metadata"]["name"] = name
    try:
        Resource.read(made)
    except ConfigError:
        return False
    return True


def case_id(case: object) -> str | None:
    return case if isinstance(case, str) else None


@pytest.mark.parametrize(("spec", "field", "message"), INVALID + MISTYPED, ids=case_id)
def test_invalid_resource_is_rejected_with_field_and_reason(
    api: Api, spec: Object, field: str, message: str
) -> None:
    causes, whole = create_dry_run(api, spec)
    assert any(field == cause["field"] and message in cause["message"] for cause in causes), whole
    assert "actual cost" not in whole
    assert not is_valid_for_loader(spec)


@pytest.mark.parametrize(("spec", "field", "message"), INVALID, ids=case_id)
def test_rule_violation_has_only_its_message(api: Api, spec: Object, field: str, message: str) -> None:
    causes, whole = create_dry_run(api, spec)
    assert {cause["field"] for cause in causes} == {field}, whole
    assert all(message in cause["message"] for cause in causes), whole


@pytest.mark.parametrize("spec", VALID)
def test_valid_resource_is_accepted(api: Api, spec: Object) -> None:
    assert create_dry_run(api, spec) == ([], "")
    assert is_valid_for_loader(spec)


@pytest.mark.parametrize(("name", "message"), NAMES)
def test_names_invalid_for_services_are_rejected(api: Api, name: str, message: str) -> None:
    causes, whole = create_dry_run(api, {}, name)
    assert any(message in cause["message"] for cause in causes), whole
    assert not is_valid_for_loader({}, name)


def test_longest_name_is_accepted(api: Api) -> None:
    assert create_dry_run(api, {}, "a" * 50) == ([], "")


def test_every_rule_has_a_test() -> None:
    tried = {message for _, _, message in INVALID} | {message for _, message in NAMES}
    [definition] = manifests("crd.yaml")
    assert {rule["message"] for rule in _rules(definition)} == tried


def _rules(node: Any) -> Iterator[Object]:
    if isinstance(node, dict):
        yield from node.get("x-kubernetes-validations", [])
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _rules(inner)
