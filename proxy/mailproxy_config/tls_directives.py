# SPDX-License-Identifier: Apache-2.0
"""The directives of ``ngx_mail_ssl_module``, and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from mailproxy_config import units
from mailproxy_config.model import SessionCache, StartTls, VerifyClient
from mailproxy_config.schema import Array, Object, Rule, String
from mailproxy_config.secret_refs import (
    ABSOLUTE_PATH,
    FILE,
    FILES,
    OBJECT_NAME,
    SELECTOR,
    CertificateRef,
    KeyRef,
    ReferenceKind,
)
from mailproxy_config.server_names import parse_server_name
from mailproxy_config.value_types import (
    FLAG,
    NUMBER,
    SEC_TIME,
    Context,
    Directive,
    ErrorPath,
    Inheritance,
    Raw,
    ValueType,
    choice,
    enum_set,
    read_items,
    text,
)


def _read_certificate(value: Mapping[str, Any], path: ErrorPath) -> CertificateRef:
    names = None
    if "serverNames" in value:
        names = read_names(value["serverNames"], path.field("serverNames"))
    if "secretName" in value:
        secret = ReferenceKind.SECRET, value["secretName"]
        return CertificateRef(KeyRef(*secret, "tls.crt"), KeyRef(*secret, "tls.key"), names)
    return CertificateRef(value["certificateFile"], value["keyFile"], names)


def _format_certificate(value: CertificateRef) -> Raw:
    names = {} if value.server_names is None else {"serverNames": list(value.server_names)}
    if isinstance(value.certificate, KeyRef):
        return {"secretName": value.certificate.name} | names
    return {"certificateFile": value.certificate, "keyFile": value.key} | names


def read_names(value: Sequence[str], path: ErrorPath) -> tuple[str, ...]:
    """Read server names, each once; add an error for each that is none."""
    names = (path.item(at).try_read(partial(parse_server_name, text)) for at, text in enumerate(value))
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _certificate_is_whole(value: Mapping[str, Any]) -> bool:
    if "secretName" in value:
        return "certificateFile" not in value and "keyFile" not in value
    return "certificateFile" in value and "keyFile" in value


NAMES: Final = Array(max_items=64, items=String(max_length=254, min_length=1))
_PAIR_FIELDS: Final = {
    "secretName": OBJECT_NAME,
    "certificateFile": ABSOLUTE_PATH,
    "keyFile": ABSOLUTE_PATH,
}
_CERTIFICATE_SHAPE: Final = Object(
    example="{secretName: NAME} or {certificateFile: /PATH, keyFile: /PATH}",
    fields=_PAIR_FIELDS,
    rules=(
        Rule(
            expression=(
                "has(self.secretName) ? !has(self.certificateFile) && !has(self.keyFile)"
                " : has(self.certificateFile) && has(self.keyFile)"
            ),
            message="set either secretName, or certificateFile together with keyFile",
            predicate=_certificate_is_whole,
        ),
    ),
    descriptions={
        "secretName": "Name of a Secret of type kubernetes.io/tls in the same namespace.",
        "certificateFile": (
            "Absolute path of a PEM file with the certificate and then the intermediate certificates."
        ),
        "keyFile": "Absolute path of the PEM file with the private key.",
    },
)
_NAMED_CERTIFICATE_SHAPE: Final = replace(
    _CERTIFICATE_SHAPE,
    fields={**_PAIR_FIELDS, "serverNames": NAMES},
    descriptions={
        **_CERTIFICATE_SHAPE.descriptions,
        "serverNames": (
            "Names in the TLS server_name extension (SNI) for which this certificate is used, such as "
            "mail.example.org or *.example.org. Empty, or not set where another item has it: the DNS "
            "names of the certificate."
        ),
    },
)
CERTIFICATES: Final = ValueType(
    syntax="list of {secretName, serverNames} or {certificateFile, keyFile, serverNames}",
    schema=Array(max_items=256, items=_NAMED_CERTIFICATE_SHAPE),
    read=lambda value, path: read_items(value, path, _read_certificate),
    write=lambda value: list(map(_format_certificate, value)),
    nginx=lambda arguments: [{"certificateFile": arguments[0]}],
    appends=True,
)
CERTIFICATE: Final = ValueType(
    syntax="{secretName} or {certificateFile, keyFile}",
    schema=_CERTIFICATE_SHAPE,
    read=_read_certificate,
    write=_format_certificate,
    nginx=lambda arguments: {"certificateFile": arguments[0]},
)
SERVER_NAMES: Final = ValueType(
    syntax="list of names",
    schema=NAMES,
    read=read_names,
    write=list,
    nginx=list,
    arity=(1, None),
)


# --- sslSessionCache, sslConfCommand -------------------------------------------

_DEFAULT_BUILTIN: Final = 20480
_MIN_SHARED: Final = 32 * 1024


def _read_session_cache(value: Sequence[str], _: ErrorPath) -> SessionCache:
    parts = {item.partition(":")[0]: item.partition(":")[2] for item in value}
    if len(parts) < len(value) or (len(value) > 1 and {"Disabled", "None"} & parts.keys()):
        raise ValueError("takes Disabled, None, or one builtin and one shared cache at most")
    name, _colon, size = parts.get("shared", "").partition(":")
    shared_size = units.parse_size(size) if size else None
    if shared_size is not None and shared_size < _MIN_SHARED:
        raise ValueError(f"session cache {name!r} is too small: at least 32k")
    builtin = int(parts["builtin"] or _DEFAULT_BUILTIN) if "builtin" in parts else None
    return SessionCache(
        off="Disabled" in parts, builtin=builtin, shared_name=name or None, shared_size=shared_size
    )


def _format_session_cache(value: SessionCache) -> Raw:
    if value.off:
        return ["Disabled"]
    builtin = [] if value.builtin is None else [f"builtin:{value.builtin}"]
    size = value.shared_size
    shared = [] if size is None else [f"shared:{value.shared_name}:{units.format_size(size)}"]
    return builtin + shared or ["None"]


SESSION_CACHE: Final = ValueType(
    syntax="list of Disabled, None, builtin[:N], shared:NAME:SIZE",
    schema=Array(
        max_items=2,
        min_items=1,
        items=String(
            max_length=64,
            pattern="^(Disabled|None|builtin(:[0-9]{1,9})?|shared:[^:]+:[0-9]+[kKmM]?)$",
            hint="Disabled, None, builtin[:N] or shared:NAME:SIZE",
        ),
    ),
    read=_read_session_cache,
    write=_format_session_cache,
    nginx=lambda arguments: [{"off": "Disabled", "none": "None"}.get(word, word) for word in arguments],
    arity=(1, 2),
)


CONF_COMMANDS: Final = ValueType(
    syntax="list of {name, value}",
    schema=Array(
        max_items=32,
        items=Object(
            fields={"name": String(max_length=128, min_length=1), "value": String(max_length=1024)},
            required=("name", "value"),
            descriptions={
                "name": "Name of the command, for example Options.",
                "value": "Value of the command.",
            },
        ),
    ),
    read=lambda value, _: tuple((item["name"], item["value"]) for item in value),
    write=lambda value: [{"name": name, "value": text} for name, text in value],
    nginx=lambda arguments: [{"name": arguments[0], "value": arguments[1]}],
    arity=(2, 2),
    appends=True,
)


_LIST: Final = Inheritance.LIST
_SSL: Final = "mail_ssl"
_STARTTLS: Final = choice({"off": "Disabled", "on": "Enabled", "only": "Only"}, StartTls)
TLS_VERSIONS: Final = enum_set(("SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"), str)


_VERIFY_CLIENT: Final = choice(
    {"off": "Disabled", "on": "Required", "optional": "Optional", "optional_no_ca": "OptionalNoCA"},
    VerifyClient,
)


TLS_DIRECTIVES: Final = (
    Directive(
        name="starttls",
        module=_SSL,
        type=_STARTTLS,
        default="Disabled",
        meaning="STARTTLS (STLS in POP3): Disabled, Enabled, or Only (required before login).",
    ),
    Directive(
        name="ssl_certificate",
        module=_SSL,
        type=CERTIFICATES,
        default=[],
        inheritance=_LIST,
        meaning=(
            "Certificates with private keys, one per key type, or by name (SNI). "
            "Required for ssl listeners and starttls."
        ),
    ),
    Directive(
        name="ssl_certificate_selector",
        module=_SSL,
        type=SELECTOR,
        is_ours=True,
        meaning=(
            "Further certificates for clients to choose by SNI: Secrets with these labels, or a directory."
        ),
    ),
    Directive(
        name="ssl_reject_handshake",
        module=_SSL,
        type=FLAG,
        default=False,
        is_ours=True,
        meaning=(
            "Rejects TLS handshakes without a server name that a certificate is configured for. Otherwise "
            "they get the first certificate."
        ),
    ),
    Directive(
        name="ssl_certificate_compression",
        module=_SSL,
        type=FLAG,
        default=False,
        meaning="Compresses certificates in TLS 1.3 handshakes if the TLS library supports it.",
    ),
    Directive(
        name="ssl_protocols",
        module=_SSL,
        type=TLS_VERSIONS,
        default=["TLSv1.2", "TLSv1.3"],
        inheritance=_LIST,
        meaning="TLS versions enabled for clients.",
    ),
    Directive(
        name="ssl_ciphers",
        module=_SSL,
        type=text(max_length=2048, syntax="OpenSSL cipher list"),
        default="HIGH:!aNULL:!MD5",
        meaning="Ciphers for TLS 1.2 and earlier, in the OpenSSL format.",
    ),
    Directive(
        name="ssl_prefer_server_ciphers",
        module=_SSL,
        type=FLAG,
        default=False,
        meaning="Prefers the cipher order of sslCiphers to the client's.",
    ),
    Directive(
        name="ssl_ecdh_curve",
        module=_SSL,
        type=text(max_length=256, syntax="auto | curve[:curve...]"),
        default="auto",
        meaning="Curves for key exchange, separated by colons. auto: the curves of the TLS library.",
    ),
    Directive(
        name="ssl_dhparam",
        module=_SSL,
        type=FILE,
        meaning="DH parameters for DHE ciphers (PEM). Not set: no DHE ciphers.",
    ),
    Directive(
        name="ssl_password_file",
        module=_SSL,
        type=FILE,
        meaning="Passphrases of private keys, one per line.",
    ),
    Directive(
        name="ssl_session_cache",
        module=_SSL,
        type=SESSION_CACHE,
        default=["None"],
        inheritance=_LIST,
        meaning="Caches for TLS session resumption.",
    ),
    Directive(
        name="ssl_session_timeout",
        module=_SSL,
        type=SEC_TIME,
        default="5m",
        meaning="Time during which a client can resume a TLS session.",
    ),
    Directive(
        name="ssl_session_tickets",
        module=_SSL,
        type=FLAG,
        default=True,
        meaning="Enables TLS session resumption with session tickets.",
    ),
    Directive(
        name="ssl_session_ticket_key",
        module=_SSL,
        type=FILES,
        default=[],
        inheritance=_LIST,
        meaning=(
            "Keys for session tickets (files of 48 or 80 bytes). The first key encrypts, all keys decrypt."
        ),
    ),
    Directive(
        name="ssl_verify_client",
        module=_SSL,
        type=_VERIFY_CLIENT,
        default="Disabled",
        meaning=(
            "Verification of client certificates: Disabled, Required, Optional, or OptionalNoCA "
            "(requested, not verified against a CA)."
        ),
    ),
    Directive(
        name="ssl_verify_depth",
        module=_SSL,
        type=NUMBER,
        default=1,
        meaning="Maximum depth of the client certificate chain.",
    ),
    Directive(
        name="ssl_client_certificate",
        module=_SSL,
        type=FILE,
        meaning="CA certificates for verifying client certificates (PEM). Their names are sent to clients.",
    ),
    Directive(
        name="ssl_trusted_certificate",
        module=_SSL,
        type=FILE,
        meaning=(
            "CA certificates for verifying client certificates (PEM). Their names are not sent to clients."
        ),
    ),
    Directive(
        name="ssl_crl",
        module=_SSL,
        type=FILE,
        meaning="Certificate revocation lists for client certificates (PEM). The whole chain is checked.",
    ),
    Directive(
        name="ssl_conf_command",
        module=_SSL,
        type=CONF_COMMANDS,
        default=[],
        inheritance=_LIST,
        meaning="OpenSSL configuration commands, applied last.",
    ),
)
"""Directives for TLS with clients, allowed in ``spec.mail`` and every server."""


TLS_FOLDED_DIRECTIVES: Final = (
    Directive(
        name="ssl_certificate_key",
        module=_SSL,
        type=CERTIFICATES,
        inheritance=_LIST,
        part_of="ssl_certificate",
        meaning="Private key of the certificate at the same position of the list. Part of sslCertificate.",
    ),
)
"""Directives of nginx whose value is part of another directive's field."""


SERVER_NAMES_DIRECTIVE: Final = Directive(
    name="server_names",
    module="mail_core",
    type=SERVER_NAMES,
    default=[],
    contexts=(Context.SERVER,),
    inheritance=Inheritance.NONE,
    is_ours=True,
    meaning=(
        "Names for SNI, by which clients choose among servers with the same ssl listener; the first "
        "one is the default. Empty: serverName."
    ),
)
"""The directive of a server by which clients choose it."""
