# SPDX-License-Identifier: Apache-2.0
"""Conditions between several fields of a manifest.

Each condition exists twice: as a CEL rule for the CRD, and as a check with the exact path.  That of
REQUIRETLS is only a check, as it depends on the protocol, which may be derived from the ports; so are those
of limits and their zones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from mailproxy_config.addresses import WELL_KNOWN_PORTS
from mailproxy_config.directives import LEVEL_DIRECTIVES, Level, ServerBlock
from mailproxy_config.errors import Problems
from mailproxy_config.kubernetes_ports import HIGH_PORT_OFFSET
from mailproxy_config.kubernetes_ports import RULES as PORT_RULES
from mailproxy_config.limit_directives import check_limits
from mailproxy_config.model import AuthMode, ListenConfig, Protocol, ProxySsl, StartTls, VerifyClient
from mailproxy_config.schema import Rule
from mailproxy_config.secret_refs import SelectorRef
from mailproxy_config.shared_listeners import SHARED_SETTINGS, Block, check_shared_listeners, sni_names

ADMIN_PORT: Final = 9113
_HIGHEST_PORT: Final = 65535
_PRIVILEGED: Final = 1024
_BUILT_IN: Final = {row.name: row.builtin() for row in LEVEL_DIRECTIVES if row.name in SHARED_SETTINGS}


def derive_protocol(listen: Iterable[ListenConfig]) -> Protocol | None:
    """The protocol of well-known ports; ``None`` if a port is not well-known or they differ."""
    found = {WELL_KNOWN_PORTS.get(listener.port or 0) for listener in listen}
    return found.pop() if len(found) == 1 else None


def check_consistency(
    spec: Mapping[str, Any], mail: Level, servers: Sequence[ServerBlock], problems: Problems
) -> None:
    """Report combinations of values that are valid on their own but not together.

    Args:
        spec: The valid fields of the spec except ``mail`` and ``servers``.
        mail: The mail level.
        servers: The servers.
        problems: Collects the errors.
    """
    for server in servers:
        if "protocol" not in server.own.given and server.listen and derive_protocol(server.listen) is None:
            reason = "is required unless all ports are well-known ports of the same protocol"
            problems.add(f"{server.path}.protocol", f"{reason}: 143 993 imap, 110 995 pop3, 25 465 587 smtp")
        is_routed = _value("auth_mode", server, mail) in {AuthMode.UPSTREAM, AuthMode.STATIC}
        if not is_routed and not _given("auth_http", server, mail):
            problems.add(f"{server.path}.authHttp", "is required: set it here or in spec.mail")
        _check_token_issuers(server, mail, problems)
        _check_block(server, mail, spec, problems)
        _check_tls(server, mail, problems)
        _check_require_tls(server, mail, problems)
        _check_ports(server, spec, problems)
    _check_names(servers, problems)
    levels = [("spec.mail", mail.values), *((server.path, server.level.values) for server in servers)]
    check_limits(levels, problems)
    check_shared_listeners([_as_block(server, mail) for server in servers], problems)
    _check_workload(spec, problems)
    _check_selectors(spec, mail, servers, problems)


def _check_token_issuers(server: ServerBlock, mail: Level, problems: Problems) -> None:
    if _value("auth_mode", server, mail) is not AuthMode.JWT or _value("oauth_issuer", server, mail):
        return
    if any(".oauthIssuers" in problem.path for problem in problems.found):
        return  # there are some, with errors
    problems.add(f"{server.path}.oauthIssuers", "is required for authMode Jwt: set it here or in spec.mail")


def _check_block(server: ServerBlock, mail: Level, spec: Mapping[str, Any], problems: Problems) -> None:
    """Check that the clients of a server with ``authBlock`` do not share one address."""
    if _value("auth_block", server, mail) is None:
        return
    path = f"{server.path}.authBlock"
    proxied = [listener.proxy_protocol for listener in server.listen]
    if any(proxied) and not _value("set_real_ip_from", server, mail):
        reason = "all clients of a listener with proxyProtocol would share the load balancer's address"
        problems.add(path, f"{reason}: set setRealIpFrom to the addresses of the load balancer")
    if not all(proxied) and spec.get("service", {}).get("externalTrafficPolicy") == "Cluster":
        reason = "with service.externalTrafficPolicy Cluster, clients share the addresses of the nodes"
        fix = "use Local, or proxyProtocol for every listener"
        problems.add(path, f"{reason}, and a block would be for all of them: {fix}")


def _given(name: str, server: ServerBlock, mail: Level) -> bool:
    return name in server.level.given or name in mail.given


def _value(name: str, server: ServerBlock, mail: Level) -> object:
    return server.level.values.get(name, mail.values.get(name))


def _uses_tls(server: ServerBlock, mail: Level) -> bool:
    starttls = _value("starttls", server, mail) or StartTls.DISABLED
    return starttls is not StartTls.DISABLED or any(listener.ssl for listener in server.listen)


def _check_tls(server: ServerBlock, mail: Level, problems: Problems) -> None:
    if not _uses_tls(server, mail):
        return
    where = "listen ssl" if any(listener.ssl for listener in server.listen) else "starttls"
    needed = f"is required for {where}: set it here or in spec.mail"
    if not _given("ssl_certificate", server, mail) or _value("ssl_certificate", server, mail) == ():
        problems.add(f"{server.path}.sslCertificate", needed)
    verify = _value("ssl_verify_client", server, mail)
    authorities = ("ssl_client_certificate", "ssl_trusted_certificate")
    if verify in {VerifyClient.REQUIRED, VerifyClient.OPTIONAL} and not any(
        _given(name, server, mail) for name in authorities
    ):
        reason = f"{verify} needs sslClientCertificate or sslTrustedCertificate"
        problems.add(f"{server.path}.sslVerifyClient", reason)


def _check_require_tls(server: ServerBlock, mail: Level, problems: Problems) -> None:
    """Check that REQUIRETLS is listed only where all mail passes through verified TLS (RFC 8689)."""
    protocol = server.protocol or derive_protocol(server.listen)
    capabilities = _value("smtp_capabilities", server, mail)
    if protocol is not Protocol.SMTP or not isinstance(capabilities, tuple):
        return
    if not lists_require_tls(capabilities):
        return
    for reason in require_tls_problems(
        listen=server.listen,
        starttls=_value("starttls", server, mail),
        proxy_ssl=_value("proxy_ssl", server, mail),
        verifies=_value("proxy_ssl_verify", server, mail) is not False,
    ):
        problems.add(f"{server.path}.smtpCapabilities", reason)


def lists_require_tls(capabilities: Iterable[str]) -> bool:
    """Return whether ``smtp_capabilities`` has REQUIRETLS."""
    return any(capability.upper().split(" ")[0] == "REQUIRETLS" for capability in capabilities)


def require_tls_problems(
    *, listen: Iterable[ListenConfig], starttls: object, proxy_ssl: object, verifies: bool
) -> Iterator[str]:
    """Yield what a server lacks for REQUIRETLS, and how to mend it."""
    if starttls is not StartTls.ONLY and not all(listener.ssl for listener in listen):
        yield 'REQUIRETLS needs TLS with every client: set "starttls" to Only, or ssl for every listener'
    if proxy_ssl in {None, ProxySsl.DISABLED}:
        yield 'REQUIRETLS needs TLS to mail servers: set "proxySsl" to Starttls or Enabled (on)'
    elif not verifies:
        yield 'REQUIRETLS needs certificates of mail servers to be verified: remove "proxySslVerify"'


def _check_ports(server: ServerBlock, spec: Mapping[str, Any], problems: Problems) -> None:
    high = spec.get("portStrategy") == "HighPort"
    on_host = spec.get("pod", {}).get("hostNetwork") is True
    for index, listener in enumerate(server.listen):
        path, port = f"{server.path}.listen[{index}].port", listener.port
        if port is None:
            continue
        if high and port > _HIGHEST_PORT - HIGH_PORT_OFFSET:
            problems.add(path, f"{port} is above 55535, the highest with portStrategy HighPort")
        if not high and port == ADMIN_PORT:
            problems.add(path, f"{port} is the admin port; use another port, or portStrategy HighPort")
        if not high and on_host and port < _PRIVILEGED:
            reason = "with pod.hostNetwork a process without root cannot open ports below 1024"
            problems.add(path, f"{reason}; use portStrategy HighPort")


def _check_names(servers: Sequence[ServerBlock], problems: Problems) -> None:
    seen: dict[str, str] = {}
    for server in servers:
        first = seen.setdefault(server.name, server.path) if server.name else server.path
        if first != server.path:
            problems.add(f"{server.path}.name", f"{server.name!r} is also the name of {first}")


def _as_block(server: ServerBlock, mail: Level) -> Block:
    """The server, as far as it matters for listeners of several servers."""
    settings = {
        name: server.level.values.get(name, mail.values.get(name, _BUILT_IN[name])) for name in _BUILT_IN
    }
    return Block(
        name=server.name,
        path=server.path,
        protocol=server.protocol or derive_protocol(server.listen),
        listen=server.listen,
        uses_tls=_uses_tls(server, mail),
        names=sni_names(server.server_names, str(_value("server_name", server, mail) or "")),
        settings=settings,
    )


def _check_workload(spec: Mapping[str, Any], problems: Problems) -> None:
    if "autoscaling" in spec and spec.get("mode", "Deployment") != "Deployment":
        problems.add("spec.autoscaling", "needs mode Deployment")
    if spec.get("mode") == "Sidecar" and spec.get("networkPolicy", {}).get("enabled") is True:
        reason = "is not allowed with mode Sidecar: the operator does not own the pods"
        fix = "remove networkPolicy, or write enabled: false"
        problems.add("spec.networkPolicy.enabled", f"{reason}; {fix}")
    _check_host_network(spec, problems)


def _check_selectors(
    spec: Mapping[str, Any], mail: Level, servers: Sequence[ServerBlock], problems: Problems
) -> None:
    """Report label selectors in mode Sidecar: the operator cannot change the volumes of running pods."""
    if spec.get("mode") != "Sidecar":
        return
    levels = [("spec.mail", mail.values), *((server.path, server.level.values) for server in servers)]
    for path, values in levels:
        if isinstance(values.get("ssl_certificate_selector"), SelectorRef):
            reason = (
                "matchLabels needs mode Deployment or DaemonSet: the volumes of other pods cannot follow it"
            )
            problems.add(f"{path}.sslCertificateSelector", reason)


def _check_host_network(spec: Mapping[str, Any], problems: Problems) -> None:
    if spec.get("pod", {}).get("hostNetwork") is not True:
        return
    for index, item in enumerate(spec.get("sysctls", {}).get("extra", ())):
        if item["name"].startswith("net."):
            problems.add(f"spec.sysctls.extra[{index}]", "with pod.hostNetwork no net.* sysctl can be set")


# --- CEL rules for the API server -----------------------------------------------


def _either(field: str) -> str:
    return f"(has(s.{field}) || (has(self.mail) && has(self.mail.{field})))"


def _effective(field: str, default: str = "Disabled") -> str:
    mail = f"(has(self.mail) && has(self.mail.{field}) ? self.mail.{field} : '{default}')"
    return f"(has(s.{field}) ? s.{field} : {mail})"


_TLS_IS_USED: Final = f"(s.listen.exists(l, has(l.ssl) && l.ssl) || {_effective('starttls')} != 'Disabled')"
_IS_ROUTED: Final = f"({_effective('authMode', 'Http')} in ['Upstream', 'Static'])"
_WANTS_A_CLIENT: Final = f"{_effective('sslVerifyClient')} in ['Required', 'Optional']"
_EVERY_IPV4: Final = "(!has({0}.address) || {0}.address == '*' || {0}.address == '0.0.0.0')"
_LEADS_SOMEWHERE: Final = (
    "{0}.routes.all(r, !has(r.upstream) || "
    "(has(self.upstreams) && self.upstreams.exists(u, u.name == r.upstream)))"
)
_ON_HOST: Final = "has(self.pod) && has(self.pod.hostNetwork) && self.pod.hostNetwork"


_HAS_BLOCK: Final = "(has({0}.authBlock) && (!has({0}.authBlock.failures) || {0}.authBlock.failures > 0))"
_BLOCKS: Final = (
    f"(has(s.authBlock) ? {_HAS_BLOCK.format('s')} : has(self.mail) && {_HAS_BLOCK.format('self.mail')})"
)
_TRUSTS: Final = (
    "(has(s.setRealIpFrom) ? s.setRealIpFrom.size() > 0 : "
    "has(self.mail) && has(self.mail.setRealIpFrom) && self.mail.setRealIpFrom.size() > 0)"
)
_IS_PROXIED: Final = "has(l.proxyProtocol) && l.proxyProtocol"


def _rule(expression: str, message: str, reason: str = "FieldValueInvalid") -> Rule:
    return Rule(expression=expression, message=message, reason=reason, predicate=None)


SPEC_RULES: Final = (
    _rule(
        f"self.servers.all(s, {_either('authHttp')} || {_IS_ROUTED})",
        "no authHttp: set it in spec.mail or in every server (or authMode Upstream or Static)",
        "FieldValueRequired",
    ),
    _rule(
        f"self.servers.all(s, !{_TLS_IS_USED} || {_either('sslCertificate')})",
        "a server with an ssl listener or starttls needs sslCertificate, its own or in spec.mail",
        "FieldValueRequired",
    ),
    _rule(
        f"self.servers.all(s, !({_TLS_IS_USED} && {_WANTS_A_CLIENT})"
        f" || {_either('sslClientCertificate')} || {_either('sslTrustedCertificate')})",
        "servers: sslVerifyClient Required or Optional needs sslClientCertificate or sslTrustedCertificate",
        "FieldValueRequired",
    ),
    _rule(
        f"self.servers.all(s, {_effective('authMode', 'Http')} != 'Jwt' || {_either('oauthIssuers')})",
        "authMode Jwt needs oauthIssuers, in spec.mail or in the server",
        "FieldValueRequired",
    ),
    _rule(
        f"self.servers.all(s, !{_BLOCKS} || {_TRUSTS} || !s.listen.exists(l, {_IS_PROXIED}))",
        "servers: authBlock with proxyProtocol needs setRealIpFrom; else clients share one address",
        "FieldValueRequired",
    ),
    _rule(
        "!has(self.service) || !has(self.service.externalTrafficPolicy) || "
        "self.service.externalTrafficPolicy != 'Cluster' || "
        f"self.servers.all(s, !{_BLOCKS} || s.listen.all(l, {_IS_PROXIED}))",
        "authBlock with service.externalTrafficPolicy Cluster would block all clients of a node: "
        "use Local, or proxyProtocol for every listener",
        "FieldValueForbidden",
    ),
    _rule(
        f"self.servers.all(s, !{_IS_ROUTED} || {_either('routes')})",
        "authMode Upstream and Static need routes, in spec.mail or in the server",
        "FieldValueRequired",
    ),
    _rule(
        f"self.servers.all(s, {_effective('authMode', 'Http')} != 'Static' || {_either('authUserFile')})",
        "authMode Static needs authUserFile, in spec.mail or in the server",
        "FieldValueRequired",
    ),
    _rule(
        f"(!has(self.mail) || !has(self.mail.routes) || {_LEADS_SOMEWHERE.format('self.mail')}) && "
        f"self.servers.all(s, !has(s.routes) || {_LEADS_SOMEWHERE.format('s')})",
        "routes[].upstream must be the name of an item of spec.upstreams",
    ),
    _rule(
        "self.servers.size() > 8 || self.servers.all(s, s.listen.all(a, !has(a.port) || "
        f"(has(a.ssl) && a.ssl) || !{_EVERY_IPV4.format('a')} || self.servers.exists_one(t, "
        f"t.listen.exists(b, has(b.port) && b.port == a.port && {_EVERY_IPV4.format('b')}))))",
        "servers[].listen: two servers listen without ssl on the same port of all IPv4 addresses",
    ),
    _rule(
        "self.portStrategy == 'HighPort' || "
        f"self.servers.all(s, s.listen.all(l, !has(l.port) || l.port != {ADMIN_PORT}))",
        f"servers[].listen[].port: {ADMIN_PORT} is the admin port",
        "FieldValueForbidden",
    ),
    _rule(
        "self.portStrategy != 'HighPort' || "
        f"self.servers.all(s, s.listen.all(l, !has(l.port) || l.port <= {_HIGHEST_PORT - HIGH_PORT_OFFSET}))",
        "servers[].listen[].port: with portStrategy HighPort a port is at most 55535",
    ),
    _rule(
        f"!({_ON_HOST}) || self.portStrategy == 'HighPort' || "
        f"self.servers.all(s, s.listen.all(l, !has(l.port) || l.port >= {_PRIVILEGED}))",
        "servers[].listen[].port: with pod.hostNetwork a process without root cannot open ports below 1024; "
        "use portStrategy HighPort",
        "FieldValueForbidden",
    ),
    _rule(
        f"!({_ON_HOST}) || !has(self.sysctls.extra) || "
        "!self.sysctls.extra.exists(x, x.name.startsWith('net.'))",
        "sysctls.extra: with pod.hostNetwork no net.* sysctl can be set",
        "FieldValueForbidden",
    ),
    _rule(
        "self.mode == 'Deployment' || !has(self.autoscaling)",
        "autoscaling needs mode Deployment",
        "FieldValueForbidden",
    ),
    _rule(
        "self.mode != 'Sidecar' || !has(self.networkPolicy) || !has(self.networkPolicy.enabled) || "
        "!self.networkPolicy.enabled",
        "networkPolicy is not allowed with mode Sidecar: the operator does not own the pods",
        "FieldValueForbidden",
    ),
    *PORT_RULES,
)
"""CEL rules of ``spec``."""
