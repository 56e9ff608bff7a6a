# SPDX-License-Identifier: Apache-2.0
"""Every transcript is played against the protocol generators, with whole lines and byte by byte."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mailproxy.protocols.registry import PROTOCOLS
from support import transcripts
from support.dialogue_player import Player, TranscriptMismatch
from support.transcripts import Step, Transcript

ALL = transcripts.load_all()
POP3_LOGIN = transcripts.load(transcripts.ROOT / "pop3" / "user_pass.dialogue")


def play(transcript: Transcript, *, cut: bool = False) -> None:
    Player(transcript, PROTOCOLS[transcript.server.protocol], cut).play()


@pytest.mark.parametrize("transcript", ALL, ids=lambda transcript: transcript.name)
def test_session_follows_transcript(transcript: Transcript) -> None:
    play(transcript)


@pytest.mark.parametrize(
    "transcript", [one for one in ALL if one.may_be_cut], ids=lambda transcript: transcript.name
)
def test_session_follows_transcript_byte_by_byte(transcript: Transcript) -> None:
    play(transcript, cut=True)


# The player itself must notice when something is not as written.


@pytest.mark.parametrize("index", range(len(POP3_LOGIN.steps)))
def test_transcript_with_missing_line_fails(index: int) -> None:
    steps = POP3_LOGIN.steps
    with pytest.raises(TranscriptMismatch):
        play(replace(POP3_LOGIN, steps=steps[:index] + steps[index + 1 :]))


@pytest.mark.parametrize(
    "extra",
    [
        Step("S", "+OK", b"+OK\r\n", 99),
        Step("P", "NOOP", b"NOOP\r\n", 99),
        Step("C", "NOOP", b"NOOP\r\n", 99),
        Step("=", "closed drain", b"", 99),
        Step("=", "note client_erred other", b"", 99),
        Step("=", "challenge", b"", 99),
    ],
    ids=str,
)
def test_transcript_with_extra_line_fails(extra: Step) -> None:
    with pytest.raises(TranscriptMismatch):
        play(replace(POP3_LOGIN, steps=(*POP3_LOGIN.steps, extra)))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["Only one line of prose.", "  S  +OK"], "no source"),
        (["What.", "Where."], "no steps"),
        (["What.", "Where.", "colour: blue", "  S  +OK"], "unknown"),
        (["What.", "Where.", "  X  +OK"], "no mark"),
    ],
)
def test_invalid_transcript_is_rejected(lines: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        transcripts.parse(lines, name="pop3/x")
