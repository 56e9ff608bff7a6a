"""Certificates for servers and clients, good and bad, made once for a kit."""

from __future__ import annotations

from pathlib import Path

from support.tls_authority import DAY, NOW, SERVER_ONLY, Authority, Issued


def make(folder: Path) -> dict[str, str]:
    """Make them, and give their files by name: ``ca``, ``crl``, and ``X_cert`` and ``X_key`` for each."""
    ours, others = folder / "ours", folder / "others"
    ours.mkdir()
    others.mkdir()
    authority, stranger = Authority(ours), Authority(others, "CN=Other CA")
    middle = Authority(ours, "CN=Middle CA", signer=authority)
    revoked = authority.issue("O=Ex, Inc/CN=revoked")
    issued: dict[str, Issued] = {
        "server": authority.issue("CN=mx.example.test", key="rsa"),
        "client": authority.issue("O=Ex, Inc/CN=client"),
        "expired": authority.issue("CN=expired", expires=NOW - DAY),
        "stranger": stranger.issue("CN=stranger"),
        "selfsigned": authority.self_signed("CN=self"),
        "wrongpurpose": authority.issue("CN=server", purpose=SERVER_ONLY),
        "deep": middle.issue("CN=deep"),
        "revoked": revoked,
    }
    found = {"ca": authority.file, "crl": authority.revocations(revoked)}
    for name, one in issued.items():
        found[f"{name}_cert"] = one.files.certificate
        found[f"{name}_key"] = one.files.key
    chain = Path(found["deep_cert"]).read_text() + Path(middle.file).read_text()
    Path(found["deep_cert"]).write_text(chain)
    return found
