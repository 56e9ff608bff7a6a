# SPDX-License-Identifier: Apache-2.0
"""Delays after failed logins, turns of accounts, and blocks, with a clock that the test sets."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Final

import pytest

from mailproxy.enums import Method, ProtocolErrorKind, UpstreamStage
from mailproxy.errors import (
    AuthTimedOut,
    AuthUnavailable,
    AuthUnreachable,
    InvalidAuthResponse,
    TokenUnavailable,
    UpstreamConfigError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTokenRefused,
)
from mailproxy.penalty import penalty_authenticator
from mailproxy.penalty.penalty_authenticator import POLL_SECONDS
from mailproxy.penalty.pod_state import PodState
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied
from mailproxy_config.failed_logins import AuthBlock
from mailproxy_config.model import Protocol
from support.penalty_world import Result, World

PENALTIES: Final = "mailproxy_auth_penalties_total"
FAILED: Final = "mailproxy_auth_failed_credentials_total"
DENIED: Final = AuthDenied(b"Invalid login or password")
ALLOWED: Final = AuthAllowed("127.0.0.1", 143, b"bob")
BLOCK: Final = AuthBlock(failures=3, window=60.0, seconds=100.0, maximum=1000.0)


class Session:
    """A session at the mail server; gets its error, after a delay again."""

    def __init__(self) -> None:
        self.errors: list[tuple[Exception, float]] = []

    def on_upstream_error(self, error: Exception, delay: float) -> None:
        self.errors.append((error, delay))


def denied_at(
    stage: UpstreamStage = UpstreamStage.LOGIN, reply: bytes = b"a NO bad password\r\n"
) -> UpstreamRefused:
    return UpstreamRefused(reply, stage=stage, is_denial=True)


# -- the penalty


def test_wait_before_a_login_grows_with_each_wrong_password() -> None:
    world = World(auth_failure_delay=0.0)
    waits = []
    for number in range(6):
        login = world.fail(f"guess {number}")
        assert login.sent is not None
        waits.append(login.sent - login.arrived)
    assert waits == [0.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_reply_to_a_refusal_comes_after_the_failure_delay() -> None:
    world = World()
    login = world.login()
    world.service.answer(login, DENIED)
    world.clock.advance(1.9)
    assert login.done is None
    world.clock.advance(0.2)
    assert (login.done, login.result) == (1002.0, DENIED)


@pytest.mark.parametrize(("auth_wait", "held"), [(0, 2.0), (1, 1.0), (2, 0.0), (60, 0.0)])
def test_longer_of_auth_wait_and_failure_delay_counts(auth_wait: int, held: float) -> None:
    world = World()
    login = world.login()
    world.service.answer(login, AuthDenied(b"No", wait=auth_wait))
    world.clock.advance(held)
    assert login.done == 1000.0 + held
    assert isinstance(login.result, AuthDenied)
    assert login.result.wait == auth_wait  # the session waits for the rest


def test_failure_delay_alone_delays_replies_only() -> None:
    world = World(auth_penalty=False, auth_failure_delay=1.0)
    for _ in range(5):
        login = world.login()
        assert login.sent == login.arrived
        world.service.answer(login, DENIED)
        world.clock.advance(1.0)
        assert login.done == login.arrived + 1.0


def test_right_password_from_a_penalized_address_waits_and_logs_in() -> None:
    world = World()
    for number in range(3):
        world.fail(f"guess {number}", user=f"user{number}")
    login = world.login("right", user="carol")
    world.clock.advance(14.9)
    assert login.sent is None
    world.clock.advance(0.2)
    world.service.answer(login, ALLOWED)
    assert isinstance(login.result, AuthAllowed)


def test_penalty_is_of_one_ipv4_address_and_of_an_ipv6_network_of_48_bits() -> None:
    world = World()
    world.fail(address="192.0.2.1")
    assert world.login(user="x", address="192.0.2.2").sent is not None
    assert world.login(user="y", address="192.0.2.1").sent is None
    assert world.login(user="z", address="::ffff:192.0.2.1").sent is None
    world.fail(user="v", address="2001:db8:1:2::3")
    assert world.login(user="u", address="2001:db8:1:ffff::1").sent is None
    assert world.login(user="t", address="2001:db8:2::1").sent is not None


def test_phone_with_the_old_password_is_one_failure() -> None:
    world = World()
    for _ in range(20):
        login = world.fail("old password")
    assert login.sent is not None
    assert login.sent - login.arrived == 4.0
    assert (world.value(FAILED, "new"), world.value(FAILED, "repeated")) == (1, 19)


def test_success_ends_no_penalty() -> None:
    world = World()
    world.fail(user="victim")
    attacker = world.login("own", user="attacker")
    world.clock.advance(4)
    world.service.answer(attacker, ALLOWED)
    world.accept(attacker)
    assert world.login(user="victim2").sent is None


def test_penalty_ends_after_15_seconds_without_a_failure() -> None:
    world = World()
    world.fail()
    world.clock.advance(15)
    assert world.login(user="x").sent is not None


def test_clock_that_jumps_forward_ends_waits_and_one_that_is_reset_delays_nobody_for_ever() -> None:
    world = World()
    world.fail()
    waiting = world.login()
    world.clock.advance(1e6)
    assert waiting.done is not None or waiting.sent is not None
    world.fail("another")
    world.clock.now = 10.0
    assert world.login(user="x").sent == 10.0


# -- users who are known


def test_user_who_logged_in_from_the_network_is_not_delayed_there() -> None:
    """NAT with one attacker: the office goes on working, for an hour after each login."""
    world = World()
    world.succeed(user="alice", address="192.0.2.77")
    for number in range(4):
        world.fail(f"guess {number}", user="root")
    assert world.login("right", user="Alice").sent == world.clock.now
    assert world.login("right", user="bob").sent is None
    assert world.value(PENALTIES, "known") == 1


def test_known_user_is_delayed_again_after_ten_wrong_passwords() -> None:
    world = World(auth_failure_delay=0.0)
    world.succeed()
    for number in range(10):
        login = world.fail(f"guess {number}")
        assert login.sent == login.arrived
    assert world.login("guess 10").sent is None


def test_parallel_guesses_at_a_known_user_are_checked_one_at_a_time() -> None:
    world = World()
    world.succeed()
    world.service.verdict = lambda _: DENIED
    world.service.peak = 0
    guesses = [world.login(f"guess {number}") for number in range(50)]
    world.clock.advance(40)
    assert world.service.peak == 1
    checked = [round(one.sent - 1000) for one in guesses if one.sent is not None]
    assert checked == [*(0,) * 10, 15]  # no longer known, after ten of them
    assert sum(one.is_refused_for_now for one in guesses) == 39


def test_login_of_a_known_user_is_recorded_again_after_a_minute() -> None:
    world = World()
    for pause in (0, 59, 61, 3540):
        world.clock.advance(pause)
        world.succeed()
    assert world.value(PENALTIES, "known") == 3
    world.clock.advance(60)
    world.login()
    assert world.value(PENALTIES, "known") == 4
    world.clock.advance(3600)
    world.login()
    assert world.value(PENALTIES, "known") == 4


def test_logins_of_known_users_do_not_wait_for_guesses_from_elsewhere() -> None:
    world = World()
    world.succeed()
    guess = world.login(address="203.0.113.1")
    assert guess in world.service.open
    assert world.login("right").sent == world.clock.now


# -- turns


def test_fifty_parallel_guesses_of_one_account_are_checked_one_at_a_time() -> None:
    world = World()
    world.service.verdict = lambda _: DENIED
    guesses = [world.login(f"guess {number}") for number in range(50)]
    world.clock.advance(60)
    checked = [one for one in guesses if one.sent is not None]
    assert world.service.peak == 1
    # At once, and then after 4, 8 and 15 seconds more; the others have waited for 30 seconds.
    assert [round(one.sent - 1000.0) for one in checked if one.sent is not None] == [0, 4, 12, 27]
    assert sum(one.is_refused_for_now for one in guesses) == 46
    assert world.value("mailproxy_auth_penalty_waiting") == 0
    assert world.state.workers.waiting() == 0


def test_parallel_guesses_from_many_addresses_are_checked_one_at_a_time() -> None:
    world = World()
    world.service.verdict = lambda _: DENIED
    guesses = [world.login(f"guess {number}", address=f"198.51.100.{number}") for number in range(50)]
    world.clock.advance(10)
    assert all(one.result == DENIED for one in guesses)
    assert world.service.peak == 1


def test_parallel_logins_with_the_right_password_follow_each_other_at_once() -> None:
    world = World()
    world.service.verdict = lambda _: AuthAllowed("127.0.0.1", 143, b"bob")
    logins = [world.login("right") for _ in range(5)]
    for _ in range(5):
        world.clock.advance(0.02)
        [allowed] = [one for one in logins if isinstance(one.result, AuthAllowed)]
        logins.remove(allowed)
        world.accept(allowed)
    assert logins == []


def test_turn_ends_when_the_client_leaves() -> None:
    world = World()
    first, second = world.login(), world.login("other")
    assert second.sent is None
    world.penalty.cancel(first.pending)
    world.clock.advance(0)
    assert (second.sent, world.service.cancelled) == (1000.0, 1)
    world.penalty.cancel(second.pending)
    assert world.value("mailproxy_auth_penalty_waiting") == 0


def test_client_that_leaves_while_it_waits_is_not_checked() -> None:
    world = World()
    world.fail()
    login = world.login("other")
    world.penalty.cancel(login.pending)
    world.clock.advance(60)
    assert (login.sent, login.done) == (None, None)
    assert (world.value("mailproxy_auth_penalty_waiting"), world.state.workers.waiting()) == (0, 0)


def test_client_that_leaves_during_the_failure_delay_gets_no_result() -> None:
    world = World()
    login = world.login()
    world.service.answer(login, DENIED)
    world.penalty.cancel(login.pending)
    world.clock.advance(60)
    assert (login.done, world.service.cancelled) == (None, 0)


def test_turn_of_a_login_whose_session_ends_before_the_verdict_is_given_back_once() -> None:
    """The session and the login refer to each other: nothing may wait for the garbage collector."""
    world = World()
    first, second = world.login(), world.login("other")
    world.service.answer(first, AuthAllowed("127.0.0.1", 143, b"bob"))
    world.clock.advance(1)
    assert second.sent is None
    assert isinstance(first.result, AuthAllowed)
    assert first.result.attempt is not None
    for _ in range(2):  # as an internal error may end a session twice
        first.result.attempt.abandoned()
    world.clock.advance(0)
    assert second.sent is not None
    assert world.login("third").sent is None  # the turn is the second one's
    assert world.value(FAILED, "new") == 0


def test_turn_of_a_login_that_no_session_takes_is_given_back() -> None:
    world = World()
    first, second = world.login(), world.login("other")
    gc.disable()
    try:
        world.service.answer(first, AuthAllowed("127.0.0.1", 143, b"bob"))
        world.clock.advance(1)
        assert second.sent is None
        first.result = None  # no login at a mail server: a limit has refused it
        world.clock.advance(1)
        assert second.sent is not None
    finally:
        gc.enable()


def test_failure_in_another_worker_while_the_turn_is_taken_leaves_one_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the check of the delay and the turn, another worker records a failure of the address."""
    one = World(auth_failure_delay=0.0)
    other = World(beside=one)
    first, second = one.login(), other.login("other")
    take_turn, results = PodState.take_turn, []

    def take_after_the_failure(state: PodState, account: int) -> float | None:
        if first in one.service.open:
            one.service.answer(first, DENIED)
        return take_turn(state, account)

    monkeypatch.setattr(other.penalty._attempts[second.pending], "owner", results.append)
    with monkeypatch.context() as patched:
        patched.setattr(PodState, "take_turn", take_after_the_failure)
        other.clock.advance(0.02)
    assert (first.result, second.sent) == (DENIED, None)
    other.clock.advance(4)
    assert second.sent == pytest.approx(1004.02)
    other.service.answer(second, ALLOWED)
    other.clock.advance(60)
    assert results == [ALLOWED]


def test_number_of_looks_for_a_turn_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalty_authenticator, "MAX_POLLS", 100)
    world, looks, accounts = World(), 0, 20
    for number in range(accounts):
        for address in ("192.0.2.1", "192.0.2.2"):
            world.login(user=f"u{number}", address=address)
    take_turn = PodState.take_turn

    def counted(state: PodState, account: int) -> float | None:
        nonlocal looks
        looks += 1
        return take_turn(state, account)

    monkeypatch.setattr(PodState, "take_turn", counted)
    world.clock.advance(1)
    assert accounts < looks <= 100 + accounts
    world.clock.advance(29 + POLL_SECONDS)
    assert sum(one.is_refused_for_now for one in world.logins.values()) == accounts  # not later


def test_error_of_a_session_ends_that_session() -> None:
    world, ended = World(), []
    login = world.login()

    def session(_: object) -> None:
        raise ValueError

    world.penalty._attempts[login.pending].owner = session
    world.penalty._context.handle_error = lambda *found: ended.append(found)  # type: ignore[method-assign]
    world.service.answer(login, AuthUnreachable())
    [(source, error)] = ended
    assert source is session
    assert isinstance(error, ValueError)


def test_turns_are_those_of_all_workers() -> None:
    one = World()
    other = World(beside=one)
    first, second = one.login(), other.login("other")
    assert (first.sent, second.sent) == (1000.0, None)
    one.service.answer(first, AuthUnreachable())
    one.clock.advance(0.02)
    assert second.sent is not None


# -- limits


def test_more_waiting_logins_than_the_maximum_get_a_temporary_error() -> None:
    world = World(auth_penalty_max=3)
    world.fail()
    waiting = [world.login(user=f"u{number}") for number in range(3)]
    refused = world.login(user="u3")
    assert refused.done is None  # never called from ``send``
    world.clock.advance(0)
    assert refused.is_refused_for_now
    assert world.value("mailproxy_auth_penalty_waiting") == 3
    assert world.value(PENALTIES, "refused") == 1
    world.clock.advance(4)
    assert all(one.sent is not None for one in waiting)
    assert world.state.workers.waiting() == 0


def test_ten_thousand_addresses_take_turns_in_bounded_memory() -> None:
    world = World(auth_failure_delay=0.0)
    world.service.verdict = lambda _: DENIED
    for number in range(10_000):
        world.login(f"guess {number}", user=f"u{number}", address=f"198.18.{number // 256}.{number % 256}")
    world.clock.advance(1)
    assert world.value(FAILED, "new") == 10_000
    world.logins.clear()
    assert (len(world.penalty._attempts), len(world.penalty._queues), len(world.penalty._deferred)) == (
        0,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        (Protocol.IMAP, b"[UNAVAILABLE] Account is temporarily unavailable."),
        (Protocol.POP3, b"[SYS/TEMP] Account is temporarily unavailable."),
        (Protocol.SMTP, b"4.7.0 Temporary authentication failure"),
    ],
)
def test_temporary_error_has_the_code_of_its_protocol(protocol: Protocol, text: bytes) -> None:
    world = World(protocol=protocol, auth_penalty_max=1)
    world.fail()
    world.login(user="x")
    login = world.login(user="y")
    world.clock.advance(0)
    assert login.result == AuthDenied(text, code=b"454")


# -- exemptions


@pytest.mark.parametrize("address", ["198.51.100.9", "10.0.0.1", "unix:"])
def test_exempt_addresses_have_no_penalty(address: str) -> None:
    """``auth_penalty_exempt``, a balancer that sent no address, and clients of UNIX sockets."""
    world = World(auth_penalty_exempt=("198.51.100.0/24",), trusted=("10.0.0.0/8",), auth_block=BLOCK)
    for number in range(10):
        login = world.login(f"guess {number}", address=address)
        assert login.sent == 1000.0
        world.service.answer(login, DENIED)
        assert login.done == 1000.0
    assert world.value(PENALTIES, "exempt") == 10
    assert not world.blocks.is_blocked(address)


def test_smtp_without_login_has_no_penalty() -> None:
    world = World(protocol=Protocol.SMTP)
    world.fail()
    login = world.login(method=Method.NONE)
    assert login.sent is not None
    world.service.answer(login, DENIED)
    assert (login.done, world.value(FAILED, "new")) == (login.arrived, 1)


# -- outages


def allow_then(error: Exception) -> Callable[[World], None]:
    """The service allows the login, and the mail server fails with this error."""

    def happen(world: World) -> None:
        login = world.login()
        world.service.answer(login, AuthAllowed("127.0.0.1", 143, b"bob"))
        assert isinstance(login.result, AuthAllowed)
        assert login.result.attempt is not None
        assert login.result.attempt.failed(Session(), error) is None

    return happen


def respond(result: Result) -> Callable[[World], None]:
    """The service, or what is asked before it, responds so."""

    def happen(world: World) -> None:
        login = world.login()
        world.service.answer(login, result)
        assert login.result is result  # at once

    return happen


def upstream(stage: UpstreamStage, **more: Any) -> UpstreamError:
    return UpstreamError("failed", stage=stage, **more)


OUTAGES: Final = {
    "no response": respond(AuthUnavailable()),
    "service unreachable": respond(AuthUnreachable()),
    "service too slow": respond(AuthTimedOut()),
    "invalid response": respond(InvalidAuthResponse()),
    "4xx code": respond(AuthDenied(b"later", code=b"451")),
    "4xx code with Auth-Wait": respond(AuthDenied(b"later", code=b"421", wait=3)),
    "deferred": respond(AuthDeferred(5)),
    **{f"upstream: {stage}": allow_then(upstream(stage)) for stage in UpstreamStage},
    "upstream sends garbage": allow_then(
        UpstreamRefused(
            b"?\r\n", stage=UpstreamStage.LOGIN, kind=ProtocolErrorKind.UNEXPECTED_REPLY, is_denial=True
        )
    ),
    "upstream says BYE": allow_then(UpstreamRefused(b"* BYE\r\n", stage=UpstreamStage.LOGIN)),
    "upstream unavailable": allow_then(denied_at(reply=b"a NO [UNAVAILABLE] later\r\n")),
    "mailbox in use": allow_then(denied_at(reply=b"* x\r\na NO [INUSE] locked\r\n")),
    "upstream's limit": allow_then(denied_at(reply=b"a NO [LIMIT] too many\r\n")),
    "upstream misconfigured": allow_then(UpstreamConfigError("no", stage=UpstreamStage.LOGIN)),
    "no access token": allow_then(TokenUnavailable("no")),
    "access token of the proxy refused": allow_then(UpstreamTokenRefused(b"a NO\r\n", None)),
    "internal error": allow_then(ValueError("ours")),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_outage_is_no_failed_login(name: str) -> None:
    """Not in the penalty, the block, the metrics and the log; and others of the account go on at once."""
    world = World(auth_block=AuthBlock(failures=1))
    OUTAGES[name](world)
    assert (world.value(FAILED, "new"), world.value(FAILED, "repeated")) == (0, 0)
    assert world.value("mailproxy_auth_addresses_blocked_total") == 0
    assert world.log.lines == []
    assert not world.blocks.is_blocked("192.0.2.1")
    assert world.login("other").sent == world.clock.now


REFUSALS: Final = {
    Protocol.IMAP: b"a NO [AUTHENTICATIONFAILED] no\r\n",
    Protocol.POP3: b"-ERR [AUTH] no\r\n",
    Protocol.SMTP: b"535 5.7.8 no\r\n",
}


@pytest.mark.parametrize("protocol", Protocol)
def test_refusal_by_the_mail_server_is_a_failed_login_with_delay(protocol: Protocol) -> None:
    world = World(protocol=protocol)
    login = world.login()
    world.service.answer(login, AuthAllowed("127.0.0.1", 143, b"bob"))
    assert isinstance(login.result, AuthAllowed)
    attempt, session = login.result.attempt, Session()
    assert attempt is not None
    error = denied_at(reply=REFUSALS[protocol])
    assert attempt.failed(session, error) is not None
    world.clock.advance(1.9)
    assert session.errors == []
    world.clock.advance(0.2)
    assert session.errors == [(error, 2.0)]
    assert attempt.failed(session, error) is None  # the second time
    assert world.value(FAILED, "new") == 1
    assert world.login("other").sent is None


def test_client_that_leaves_during_the_delay_of_the_mail_servers_refusal_gets_no_reply() -> None:
    world = World()
    login = world.login()
    world.service.answer(login, AuthAllowed("127.0.0.1", 143, b"bob"))
    assert isinstance(login.result, AuthAllowed)
    assert login.result.attempt is not None
    session = Session()
    delay = login.result.attempt.failed(session, denied_at())
    assert delay is not None
    delay.cancel()
    world.clock.advance(10)
    assert session.errors == []


def test_deferred_login_is_delayed_once() -> None:
    world = World()
    world.fail()
    login = world.login("right", session="same")
    world.clock.advance(4)
    world.service.answer(login, AuthDeferred(1))
    again = world.login("right", session="same")
    assert again.sent == world.clock.now
    assert world.login("right", session="same", attempt=2, user="x").sent is None


# -- blocks


def test_address_is_blocked_after_distinct_wrong_credentials() -> None:
    world = World(auth_penalty=False, auth_block=BLOCK)
    for number in range(2):
        world.fail(f"guess {number}")
    assert not world.blocks.is_blocked("192.0.2.1")
    world.fail("guess 2")
    assert world.blocks.is_blocked("192.0.2.1")
    assert world.blocks.is_blocked("::ffff:192.0.2.1")
    assert not world.blocks.is_blocked("192.0.2.2")
    assert world.value("mailproxy_auth_addresses_blocked_total") == 1
    [event] = world.log.of("address_blocked")
    assert (event["client"], event["seconds"]) == ("192.0.2.1", 100)
    assert event["until"].endswith("Z")
    world.clock.advance(100)
    assert not world.blocks.is_blocked("192.0.2.1")


def test_block_of_ipv6_is_of_a_network_of_64_bits() -> None:
    world = World(auth_penalty=False, auth_block=AuthBlock(failures=1))
    world.fail(address="2001:db8:1:2::3")
    assert world.blocks.is_blocked("2001:db8:1:2:ffff::")
    assert not world.blocks.is_blocked("2001:db8:1:3::3")


def test_login_on_a_connection_from_before_the_block_gets_a_temporary_error() -> None:
    world = World(auth_penalty=False, auth_block=AuthBlock(failures=1))
    world.fail()
    login = world.login("right")
    world.clock.advance(0)
    assert (login.sent, login.is_refused_for_now) == (None, True)


def test_phone_with_the_old_password_does_not_block_its_address() -> None:
    world = World(auth_block=BLOCK)
    for _ in range(20):
        world.fail("old password")
        world.clock.advance(10)
    assert not world.blocks.is_blocked("192.0.2.1")


# -- log


def test_events_name_session_client_and_user_but_no_password() -> None:
    world = World(auth_penalty_max=1)
    world.fail("secret")
    world.login("secret", session="abc")
    world.login("secret", user="x")
    delayed, refused = world.log.of("auth_penalty")
    assert delayed == {
        "session": "abc",
        "client": "192.0.2.1",
        "user": b"bob",
        "action": "delayed",
        "penalty": 1,
        "wait": 4.0,
    }
    assert (refused["action"], refused["wait"]) == ("refused", 0.0)
    assert "secret" not in str(world.log.lines)
