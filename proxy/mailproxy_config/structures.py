"""Directive values with parts of their own: the authorization service, name servers, files, certificates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from . import addresses, units
from .model import AuthHttp, AuthHttpHeader, LogLevel, ResolverConfig, SessionCache
from .references import CertificateRef, FileRef, HeaderRef, KeyRef, ReferenceKind
from .shapes import Flag, ListOf, Record, Rule, Text
from .values import SEC_SHAPE, Place, Raw, ValueType, each, nginx_text, no_control_characters, texts

_NAME: Final = Text(
    longest=253,
    shortest=1,
    pattern="^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
    hint="the name of an object: lower-case letters, digits, hyphens and dots",
)
_KEY: Final = Text(
    longest=253,
    shortest=1,
    pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$",
    hint="a key: letters, digits, hyphens, underscores and dots, not beginning with two dots",
)
_PATH: Final = Text(longest=1024, pattern="^/", hint="an absolute path")
_KEY_REF: Final = Record(fields={"name": _NAME, "key": _KEY}, required=("name", "key"))


def _key_ref(kind: ReferenceKind, value: Mapping[str, str]) -> KeyRef:
    return KeyRef(kind, value["name"], value["key"])


def _key_ref_written(ref: KeyRef) -> Raw:
    field = "secretKeyRef" if ref.kind is ReferenceKind.SECRET else "configMapKeyRef"
    return {field: {"name": ref.name, "key": ref.key}}


# --- authHttp, authHttpHeader --------------------------------------------------


def _scheme_is_known(text: str) -> bool:
    return "://" not in text or text.startswith(("http://", "https://"))


def auth_http_text(value: AuthHttp) -> str:
    """The URL that reads as this value."""
    scheme = "https" if value.tls else "http"
    if value.unix_path is not None:
        return f"{scheme}://unix:{value.unix_path}:{value.uri}"
    return f"{scheme}://{value.host}:{value.port}{value.uri}"


AUTH_HTTP: Final = ValueType(
    syntax="URL",
    shape=Text(
        longest=1024,
        shortest=1,
        rules=(
            Rule(
                expression=(
                    "!self.contains('://') || self.startsWith('http://') || self.startsWith('https://')"
                ),
                message="authHttp must be [http://]host[:port][/path] or an https:// URL",
                holds=_scheme_is_known,
            ),
            no_control_characters("authHttp"),
        ),
    ),
    read=lambda value, _: addresses.auth_http(value),
    write=auth_http_text,
    nginx=nginx_text,
)


def _header(value: Mapping[str, Any], _: Place) -> AuthHttpHeader | HeaderRef:
    if "valueFrom" in value:
        return HeaderRef(value["name"], _key_ref(ReferenceKind.SECRET, value["valueFrom"]["secretKeyRef"]))
    return AuthHttpHeader(name=value["name"], value=value["value"])


def _header_written(value: AuthHttpHeader | HeaderRef) -> Raw:
    if isinstance(value, HeaderRef):
        return {"name": value.name, "valueFrom": _key_ref_written(value.source)}
    return {"name": value.name, "value": value.value}


HEADERS: Final = ValueType(
    syntax="list of {name, value} or {name, valueFrom: {secretKeyRef: {name, key}}}",
    shape=ListOf(
        most=32,
        items=Record(
            fields={
                "name": Text(
                    longest=127,
                    shortest=1,
                    pattern="^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
                    hint="the name of a header, without spaces and colons",
                ),
                "value": Text(longest=1024, rules=(no_control_characters("a header value"),), secret=True),
                "valueFrom": Record(fields={"secretKeyRef": _KEY_REF}, required=("secretKeyRef",)),
            },
            required=("name",),
            rules=(
                Rule(
                    expression="has(self.value) != has(self.valueFrom)",
                    message="exactly one of value and valueFrom must be set",
                    holds=lambda header: ("value" in header) != ("valueFrom" in header),
                ),
            ),
        ),
    ),
    read=lambda value, place: each(value, place, _header),
    write=lambda value: list(map(_header_written, value)),
    nginx=lambda words: [{"name": words[0], "value": words[1]}],
    arity=(2, 2),
    appends=True,
)


# --- resolver ------------------------------------------------------------------


def _name_server(value: str, _: Place) -> str:
    addresses.host_port(value)
    return value


def _resolver(value: Mapping[str, Any], place: Place) -> ResolverConfig | None:
    if value.get("mode") in {"Disabled", "Off"}:
        return None
    valid = place.field("valid").attempt(lambda: units.sec_time(value["valid"])) if "valid" in value else None
    return ResolverConfig(
        addresses=each(value.get("addresses", ()), place.field("addresses"), _name_server),
        system=value.get("mode") == "System",
        valid=valid,
        ipv4=value.get("ipv4", True),
        ipv6=value.get("ipv6", True),
        status_zone=value.get("statusZone"),
    )


def _resolver_written(value: ResolverConfig | None) -> Raw:
    if value is None:
        return {"mode": "Disabled"}
    where: dict[str, Raw] = {"mode": "System"} if value.system else {"addresses": list(value.addresses)}
    where |= {} if value.valid is None else {"valid": units.printed_time(value.valid)}
    where |= {family: False for family in ("ipv4", "ipv6") if not getattr(value, family)}
    return where | ({} if value.status_zone is None else {"statusZone": value.status_zone})


def _resolver_from_nginx(words: Sequence[str]) -> Raw:
    if words[0] == "off":
        return {"mode": "Disabled"}
    found: dict[str, Raw] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        if not equals:
            found.setdefault("addresses", []).append(word)
        elif name in {"ipv4", "ipv6"} and rest in {"on", "off"}:
            found[name] = rest == "on"
        elif name in {"valid", "status_zone"}:
            found["valid" if name == "valid" else "statusZone"] = rest
        else:
            raise ValueError(f"invalid parameter: {word}")
    if "addresses" not in found:
        raise ValueError("no name servers defined")
    return found


RESOLVER: Final = ValueType(
    syntax="{addresses, valid, ipv4, ipv6, statusZone} or {mode: Disabled | System}",
    shape=Record(
        fields={
            "mode": Text(longest=16, words=("Disabled", "Off", "System")),
            "addresses": ListOf(items=Text(longest=261, shortest=1), most=8, fewest=1),
            "valid": SEC_SHAPE,
            "ipv4": Flag(),
            "ipv6": Flag(),
            "statusZone": Text(longest=63),
        },
        rules=(
            Rule(
                expression="has(self.mode) != has(self.addresses)",
                message="resolver takes either addresses or mode (Disabled, System)",
                holds=lambda value: ("mode" in value) != ("addresses" in value),
            ),
            Rule(
                expression="!has(self.ipv4) || !has(self.ipv6) || self.ipv4 || self.ipv6",
                message="resolver: ipv4 and ipv6 cannot both be false",
                holds=lambda value: value.get("ipv4", True) or value.get("ipv6", True),
            ),
        ),
        descriptions={
            "mode": "Disabled looks nothing up, System asks the name servers of the pod. Off means Disabled.",
            "addresses": "Name servers: an address or a name, each with an optional port (53).",
            "valid": "How long answers are kept, instead of what they say themselves.",
            "ipv4": "Whether IPv4 addresses are looked up (on unless false).",
            "ipv6": "Whether IPv6 addresses are looked up (on unless false).",
            "statusZone": "The name under which look-ups are counted.",
        },
    ),
    read=_resolver,
    write=_resolver_written,
    nginx=_resolver_from_nginx,
    arity=(1, None),
)


# --- errorLog, setRealIpFrom ---------------------------------------------------

LEVELS: Final = tuple(map(str, LogLevel))


def _level_from_nginx(words: Sequence[str]) -> Raw:
    level = words[1] if len(words) > 1 else "error"
    level = "debug" if level.startswith("debug_") else level
    if level not in LEVELS:
        raise ValueError(f'invalid log level "{level}"')
    return {"level": level}


ERROR_LOG: Final = ValueType(
    syntax="{level: " + " | ".join(LEVELS) + "}",
    shape=Record(
        fields={"level": Text(longest=16, words=LEVELS)},
        descriptions={"level": "The least grave level that is written; debug says most, emerg least."},
    ),
    read=lambda value, _: LogLevel(value["level"]) if "level" in value else None,
    write=lambda value: {"level": str(value)},
    nginx=_level_from_nginx,
    arity=(1, None),
)


def _peer(value: str, place: Place) -> str:
    canonical, bits_lost = addresses.trusted_peer(value)
    if bits_lost:
        place.problems.notice(place.path, f"low address bits of {value} are meaningless")
    return canonical


PEERS: Final = texts(_peer, syntax="list of address, CIDR range, unix: or host name", most=64, longest=261)


# --- certificates and other files ----------------------------------------------


def _file(value: Mapping[str, Any], _: Place) -> FileRef:
    if "secretKeyRef" in value:
        return _key_ref(ReferenceKind.SECRET, value["secretKeyRef"])
    if "configMapKeyRef" in value:
        return _key_ref(ReferenceKind.CONFIG_MAP, value["configMapKeyRef"])
    return str(value["file"])


def _file_written(value: FileRef) -> Raw:
    return {"file": value} if isinstance(value, str) else _key_ref_written(value)


_SOURCES: Final = ("secretKeyRef", "configMapKeyRef", "file")
FILE_SHAPE: Final = Record(
    fields={"secretKeyRef": _KEY_REF, "configMapKeyRef": _KEY_REF, "file": _PATH},
    rules=(
        Rule(
            expression=(
                "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.file)].filter(x, x).size() == 1"
            ),
            message="exactly one of secretKeyRef, configMapKeyRef and file must be set",
            holds=lambda value: sum(source in value for source in _SOURCES) == 1,
        ),
    ),
)
_FILE_SYNTAX: Final = "{secretKeyRef: {name, key}}, {configMapKeyRef: {name, key}} or {file}"
FILE: Final = ValueType(
    syntax=_FILE_SYNTAX,
    shape=FILE_SHAPE,
    read=_file,
    write=_file_written,
    nginx=lambda words: {"file": words[0]},
)
FILES: Final = ValueType(
    syntax="list of " + _FILE_SYNTAX,
    shape=ListOf(items=FILE_SHAPE, most=8),
    read=lambda value, place: each(value, place, _file),
    write=lambda value: list(map(_file_written, value)),
    nginx=lambda words: [{"file": words[0]}],
    appends=True,
)


def _certificate(value: Mapping[str, str], _: Place) -> CertificateRef:
    if "secretName" in value:
        secret = ReferenceKind.SECRET, value["secretName"]
        return CertificateRef(KeyRef(*secret, "tls.crt"), KeyRef(*secret, "tls.key"))
    return CertificateRef(value["certificateFile"], value["keyFile"])


def _certificate_written(value: CertificateRef) -> Raw:
    if isinstance(value.certificate, KeyRef):
        return {"secretName": value.certificate.name}
    return {"certificateFile": value.certificate, "keyFile": value.key}


def _certificate_is_whole(value: Mapping[str, Any]) -> bool:
    if "secretName" in value:
        return "certificateFile" not in value and "keyFile" not in value
    return "certificateFile" in value and "keyFile" in value


CERTIFICATES: Final = ValueType(
    syntax="list of {secretName} or {certificateFile, keyFile}",
    shape=ListOf(
        most=8,
        items=Record(
            fields={"secretName": _NAME, "certificateFile": _PATH, "keyFile": _PATH},
            rules=(
                Rule(
                    expression=(
                        "has(self.secretName) ? !has(self.certificateFile) && !has(self.keyFile)"
                        " : has(self.certificateFile) && has(self.keyFile)"
                    ),
                    message="set either secretName, or certificateFile together with keyFile",
                    holds=_certificate_is_whole,
                ),
            ),
            descriptions={
                "secretName": "A Secret of type kubernetes.io/tls in the same namespace.",
                "certificateFile": "Path of a PEM file, the server's certificate first.",
                "keyFile": "Path of the PEM file with its private key.",
            },
        ),
    ),
    read=lambda value, place: each(value, place, _certificate),
    write=lambda value: list(map(_certificate_written, value)),
    nginx=lambda words: [{"certificateFile": words[0]}],
    appends=True,
)


# --- sslSessionCache, sslConfCommand -------------------------------------------

_DEFAULT_BUILTIN: Final = 20480
_SMALLEST_SHARED: Final = 32 * 1024


def _session_cache(value: Sequence[str], _: Place) -> SessionCache:
    parts = {item.partition(":")[0]: item.partition(":")[2] for item in value}
    if len(parts) < len(value) or (len(value) > 1 and {"Disabled", "None"} & parts.keys()):
        raise ValueError("takes Disabled, None, or one builtin and one shared cache at most")
    name, _colon, size = parts.get("shared", "").partition(":")
    shared_size = units.size(size) if size else None
    if shared_size is not None and shared_size < _SMALLEST_SHARED:
        raise ValueError(f"session cache {name!r} is too small: at least 32k")
    builtin = int(parts["builtin"] or _DEFAULT_BUILTIN) if "builtin" in parts else None
    return SessionCache(
        off="Disabled" in parts, builtin=builtin, shared_name=name or None, shared_size=shared_size
    )


def _session_cache_written(value: SessionCache) -> Raw:
    if value.off:
        return ["Disabled"]
    builtin = [] if value.builtin is None else [f"builtin:{value.builtin}"]
    size = value.shared_size
    shared = [] if size is None else [f"shared:{value.shared_name}:{units.printed_size(size)}"]
    return builtin + shared or ["None"]


SESSION_CACHE: Final = ValueType(
    syntax="list of Disabled, None, builtin[:N], shared:NAME:SIZE",
    shape=ListOf(
        most=2,
        fewest=1,
        items=Text(
            longest=64,
            pattern="^(Disabled|None|builtin(:[0-9]{1,9})?|shared:[^:]+:[0-9]+[kKmM]?)$",
            hint="Disabled, None, builtin[:N] or shared:NAME:SIZE",
        ),
    ),
    read=_session_cache,
    write=_session_cache_written,
    nginx=lambda words: [{"off": "Disabled", "none": "None"}.get(word, word) for word in words],
    arity=(1, 2),
)

CONF_COMMANDS: Final = ValueType(
    syntax="list of {name, value}",
    shape=ListOf(
        most=32,
        items=Record(
            fields={"name": Text(longest=128, shortest=1), "value": Text(longest=1024)},
            required=("name", "value"),
        ),
    ),
    read=lambda value, _: tuple((item["name"], item["value"]) for item in value),
    write=lambda value: [{"name": name, "value": text} for name, text in value],
    nginx=lambda words: [{"name": words[0], "value": words[1]}],
    arity=(2, 2),
    appends=True,
)
