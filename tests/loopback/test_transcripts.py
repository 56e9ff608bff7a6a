# SPDX-License-Identifier: Apache-2.0
"""Play each transcript over sockets, through a whole worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from support import loopback_player, transcripts
from support.dialogue_player import TranscriptMismatch
from support.loopback_player import play
from support.tls_identities import Identities
from support.transcripts import Step, Transcript

LEFT_OUT: Final = {
    "pop3/upstream_credentials_of_the_service": "an answer with CR LF in it is refused as a whole",
    "smtp/upstream_auth_credentials_of_the_service": "an answer with NUL in it is refused likewise",
    "pop3/upstream_no_password": "a grant without the password that POP3 needs is no usable answer",
    "pop3/upstream_substitutes": "a header's value does not begin with a space",
    "imap/postponed_for_ever": "it takes a day, and a quarter of an hour even here",
}
"""Transcripts that are impossible over HTTP, or take too long for a test, with the reason."""

ALL: Final = transcripts.load_all()
LOGIN: Final = transcripts.load(transcripts.ROOT / "pop3" / "user_pass.dialogue")


@pytest.mark.parametrize(
    "transcript", [one for one in ALL if one.name not in LEFT_OUT], ids=lambda transcript: transcript.name
)
def test_session_over_sockets_follows_transcript(
    transcript: Transcript, identities: Identities, tmp_path: Path
) -> None:
    play(transcript, identities, tmp_path)


def test_excluded_transcripts_exist() -> None:
    assert LEFT_OUT.keys() <= {transcript.name for transcript in ALL}


@pytest.mark.parametrize("index", range(len(LOGIN.steps)))
def test_transcript_with_missing_line_fails(
    index: int, identities: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback_player, "TIMEOUT_SECONDS", 0.5)
    steps = LOGIN.steps
    with pytest.raises((TranscriptMismatch, TimeoutError)):
        play(replace(LOGIN, steps=steps[:index] + steps[index + 1 :]), identities, tmp_path)


@pytest.mark.parametrize(
    "extra",
    [
        Step("S", "+OK", b"+OK\r\n", 99),
        Step("P", "NOOP", b"NOOP\r\n", 99),
        Step("=", "closed drain", b"", 99),
        Step("=", "note client_erred other", b"", 99),
    ],
    ids=str,
)
def test_transcript_with_extra_line_fails(
    extra: Step, identities: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback_player, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises((TranscriptMismatch, TimeoutError)):
        play(replace(LOGIN, steps=(*LOGIN.steps, extra)), identities, tmp_path)
