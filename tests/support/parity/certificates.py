# SPDX-License-Identifier: Apache-2.0
"""Valid and invalid certificates for servers and clients, created once for a kit."""

from __future__ import annotations

from pathlib import Path

from support.tls_authority import DAY, NOW, SERVER_ONLY, Authority, Issued

_DHPARAM = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""
"""ffdhe2048 of RFC 7919."""


def make_certificates(folder: Path) -> dict[str, str]:
    """Create the certificates; return their files: ``ca``, ``crl``, and ``X_cert`` and ``X_key`` for each."""
    ours, others = folder / "ours", folder / "others"
    ours.mkdir()
    others.mkdir()
    authority, stranger = Authority(ours), Authority(others, "CN=Other CA")
    middle = Authority(ours, "CN=Middle CA", signer=authority)
    revoked = authority.issue("O=Ex, Inc/CN=revoked")
    issued: dict[str, Issued] = {
        "server": authority.issue("CN=mx.example.test", key="rsa"),
        "other": authority.issue("CN=mx.example.test", key="rsa"),
        "locked": authority.issue("CN=mx.example.test", key="rsa", passphrase=b"correct horse"),
        "client": authority.issue("O=Ex, Inc/CN=client"),
        "expired": authority.issue("CN=expired", expires=NOW - DAY),
        "stranger": stranger.issue("CN=stranger"),
        "selfsigned": authority.self_signed("CN=self"),
        "wrongpurpose": authority.issue("CN=server", purpose=SERVER_ONLY),
        "deep": middle.issue("CN=deep"),
        "revoked": revoked,
    }
    found = {"ca": authority.file, "others_ca": stranger.file, "crl": authority.revocation_list(revoked)}
    for name, item in issued.items():
        found[f"{name}_cert"] = item.files.certificate
        found[f"{name}_key"] = item.files.key
    found["passwords"] = _written(folder / "passwords", "wrong\ncorrect horse\n")
    found["dhparam"] = _written(folder / "dhparam.pem", _DHPARAM)
    for name, size in (("ticket_key_a", 48), ("ticket_key_b", 80)):
        found[name] = str(folder / name)
        Path(found[name]).write_bytes(bytes([size]) * size)
    chain = Path(found["deep_cert"]).read_text() + Path(middle.file).read_text()
    Path(found["deep_cert"]).write_text(chain)
    return found


def _written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)
