# SPDX-License-Identifier: Apache-2.0
"""Delays logins by the failures of their address, before the next authenticator gets them.

A login waits until its delay is over (``auth_penalty``), and then for the turn of its account: two guesses
of one account are never checked at the same time.  A user who logged in from the same network within the
last hour is not delayed, and takes turns only with that user's logins from there.  After a
refusal the reply waits (``auth_failure_delay``).

A login that would wait too long, or that comes when too many wait (``auth_penalty_max``), and one from
a blocked address get a temporary error, never that of a wrong password.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from mailproxy.auth_http.pending_request import Authenticator, PendingRequest
from mailproxy.context import WorkerContext
from mailproxy.enums import FailedCredentials, Method, PenaltyAction
from mailproxy.errors import AuthUnavailable
from mailproxy.penalty.addresses import block_network, penalty_network, user_network
from mailproxy.penalty.block_check import CountedAddresses, Exemptions
from mailproxy.penalty.login_attempt import LoginAttempt
from mailproxy.penalty.pod_state import PodState
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied, AuthRequest, Decision
from mailproxy.telemetry.log_writer import LogWriter
from mailproxy_config.model import LogLevel, Protocol, ServerConfig

RECORD_AGAIN_SECONDS: Final = 60.0
"""After a login, others of the same user and network are not recorded for so long."""
POLL_SECONDS: Final = 0.02
"""How often the first of those that wait for a turn looks whether another worker has ended it."""
MAX_POLLS: Final = 2000
"""So often per second all of them look; where logins of many accounts wait, each one looks less often."""
_MAX_DEFERRED: Final = 4096
_UNAVAILABLE: Final = b"Account is temporarily unavailable."
_CODE: Final = b"454"
"""Marks the reply as a temporary one; only SMTP sends it."""
TEMPORARY_ERROR: Final = {
    Protocol.IMAP: b"[UNAVAILABLE] " + _UNAVAILABLE,
    Protocol.POP3: b"[SYS/TEMP] " + _UNAVAILABLE,
    Protocol.SMTP: b"4.7.0 Temporary authentication failure",
}

CallLater = Callable[[float, Callable[[], object]], asyncio.TimerHandle]


class PenaltyAuthenticator:
    """Counts the failed logins of one server block, and delays its logins.

    Args:
        context: The worker's shared parts.
        following: Decides about logins whose delay is over.
        server: The server block.
        state: The records of the pod.
        exemptions: Addresses without penalty and block.
        log: The log of the server's sessions.
        call_later: Calls something after some seconds; by default of the event loop.

    Attributes:
        call_later: See above.
        failure_delay: Seconds between a refusal and its reply.
        protocol: The protocol of the server.
    """

    __slots__ = (
        "_addresses",
        "_attempts",
        "_block",
        "_context",
        "_deferred",
        "_delays",
        "_following",
        "_known",
        "_log",
        "_max_waiting",
        "_queues",
        "_running",
        "_state",
        "call_later",
        "failure_delay",
        "protocol",
    )

    def __init__(
        self,
        context: WorkerContext,
        following: Authenticator,
        server: ServerConfig,
        state: PodState,
        *,
        exemptions: Exemptions,
        log: LogWriter,
        call_later: CallLater | None = None,
    ) -> None:
        self._context = context
        self._following = following
        self._state = state
        self._addresses = CountedAddresses(exemptions)
        self._known = context.metrics.penalties[PenaltyAction.KNOWN]
        self._log = log
        self._delays = server.auth_penalty
        self._block = server.auth_block
        self._max_waiting = server.auth_penalty_max
        # without an authentication service the session delays refusals, those without an upstream alike
        self.failure_delay = 0.0 if server.auth_mode.needs_routes else server.failure_delay
        self.protocol = server.protocol
        self.call_later: CallLater = context.loop.call_later if call_later is None else call_later
        self._attempts: dict[PendingRequest, LoginAttempt] = {}
        self._queues: dict[int, deque[LoginAttempt]] = {}
        self._running: set[int] = set()
        self._deferred: OrderedDict[tuple[str, int], None] = OrderedDict()

    # -- the authenticator

    def send(self, pending: PendingRequest) -> None:
        """Pass a login on, now or after its delay; its callback is never called from here."""
        request = pending.auth_request
        if request.credentials.method is Method.NONE:
            self._following.send(pending)
            return
        address = self._addresses[request.client.address]
        if address is None:
            self._context.metrics.penalties[PenaltyAction.EXEMPT].value += 1
            self._following.send(pending)
            return
        attempt = self._attempts[pending] = LoginAttempt(self, pending, address, self._state.clock())
        self._identify(attempt)
        if self._block is not None and self._state.blocked_for(self._block_key(attempt)):
            self._refuse(attempt)
        elif self._delays and not (attempt.known_since and self._take_turn(attempt)):
            self.advance(attempt)
        else:  # as ``advance`` does in the end; nothing delays most logins
            self._forward(attempt)

    def cancel(self, pending: PendingRequest) -> None:
        """Drop a login whose client has left."""
        attempt = self._attempts.pop(pending, None)
        if attempt is None or attempt.is_forwarded:
            self._following.cancel(pending)
        if attempt is not None:
            attempt.owner = pending.callback = None
            if attempt.timer is not None:
                attempt.timer.cancel()
                attempt.timer = None
            self._stop_waiting(attempt)
            self.end_turn(attempt)

    # -- delays

    def advance(self, attempt: LoginAttempt) -> None:
        """Pass a login on, if its delay is over and it is its turn; else let it wait."""
        state = self._state
        now = state.clock()
        left = attempt.arrived + state.rules.longest_wait - now
        if left <= 0:
            self._refuse(attempt)
            return
        if attempt.is_queued and attempt.is_known and not state.last_login(attempt.pair):
            self._forget_user(attempt)
        delay = self._due(attempt) - now
        if delay <= 0:
            if not self._take_turn(attempt):
                self._wait_for_turn(attempt)
                return
            delay = self._due(attempt) - now  # the login before it may have failed meanwhile
        if delay <= 0:
            self._forward(attempt)
            return
        self._leave_queue(attempt)  # first: the end of a turn makes a timer for the first in the queue
        self.end_turn(attempt)
        if self._may_wait(attempt):
            self._report_delay(attempt, delay)
            attempt.timer = self.call_later(min(delay, left), attempt.resume)

    def _due(self, attempt: LoginAttempt) -> float:
        """Return when the delay of a login is over: it begins anew with each failure for its account."""
        if attempt.is_known or attempt.has_waited:
            return attempt.arrived
        state = self._state
        begin = max(attempt.arrived, state.last_failure(attempt.account, attempt.address))
        penalty = state.penalty(attempt.address)
        attempt.penalty = max(attempt.penalty, penalty)
        return begin + state.rules.waits[penalty]

    def _may_wait(self, attempt: LoginAttempt) -> bool:
        """Count a login among those that wait; refuse it if there are too many."""
        if attempt.is_waiting:
            return True
        state = self._state
        if not attempt.is_known and state.workers.waiting() >= self._max_waiting:
            self._refuse(attempt)
            return False
        attempt.is_waiting = True
        state.workers.add(1)
        self._context.metrics.penalty_waiting.value += 1
        return True

    def _report_delay(self, attempt: LoginAttempt, seconds: float) -> None:
        """Count and log the first delay of a login; waiting for a turn is none."""
        if attempt.is_delayed:
            return
        attempt.is_delayed = True
        self._context.metrics.penalties[PenaltyAction.DELAYED].value += 1
        self._log_penalty(attempt, PenaltyAction.DELAYED, seconds)

    def _stop_waiting(self, attempt: LoginAttempt) -> None:
        if attempt.is_queued:
            self._leave_queue(attempt)
        if attempt.is_waiting:
            attempt.is_waiting = False
            self._state.workers.add(-1)
            self._context.metrics.penalty_waiting.value -= 1

    # -- turns

    def _take_turn(self, attempt: LoginAttempt) -> bool:
        """Begin the turn of a login, if no other one of its account has it.

        Users who are known take turns in this worker only, which takes no time; there are few guesses at
        their accounts.
        """
        if not attempt.known_since:
            attempt.turn = self._state.take_turn(attempt.account)
            return attempt.turn is not None
        if attempt.account in self._running:
            return False
        self._running.add(attempt.account)
        attempt.turn = attempt.arrived
        return True

    def _wait_for_turn(self, attempt: LoginAttempt) -> None:
        if not attempt.is_queued:
            if not self._may_wait(attempt):
                return
            attempt.is_queued = True
            self._queues.setdefault(attempt.account, deque()).append(attempt)
        if self._queues[attempt.account][0] is attempt:
            left = attempt.arrived + self._state.rules.longest_wait - self._state.clock()
            pause = max(POLL_SECONDS, min(len(self._queues) / MAX_POLLS, left))
            attempt.timer = self.call_later(pause, attempt.resume)

    def _leave_queue(self, attempt: LoginAttempt) -> None:
        if not attempt.is_queued:
            return
        attempt.is_queued = False
        queue = self._queues[attempt.account]
        was_first = queue[0] is attempt
        queue.remove(attempt)
        if not queue:
            del self._queues[attempt.account]
        elif was_first:
            self._wake_first(attempt.account)

    def _wake_first(self, account: int) -> None:
        """Let the first of those that wait for a turn look again, in the next event loop iteration."""
        queue = self._queues.get(account)
        if queue:
            first = queue[0]
            if first.timer is not None:
                first.timer.cancel()
            first.timer = self.call_later(0.0, first.resume)

    def end_turn(self, attempt: LoginAttempt, failed_by: int = 0) -> None:
        """Let the next login of the account begin.

        Args:
            attempt: The login that is over.
            failed_by: See ``PodState.end_turn``.
        """
        turn, attempt.turn = attempt.turn, None
        if turn is None:
            return
        if attempt.known_since:
            self._running.discard(attempt.account)
        else:
            self._state.end_turn(attempt.account, turn, failed_by)
        if self._queues:
            self._wake_first(attempt.account)

    # -- results

    def _forward(self, attempt: LoginAttempt) -> None:
        if attempt.is_queued or attempt.is_waiting:
            self._stop_waiting(attempt)
        pending = attempt.pending
        pending.callback = attempt.on_result
        pending.started = self._context.epoll.now
        attempt.is_forwarded = True
        self._following.send(pending)

    def on_result(self, attempt: LoginAttempt, result: Decision | AuthUnavailable) -> None:
        """Record how a login ended, and pass that to its session."""
        if isinstance(result, AuthAllowed):
            result.attempt = attempt
            self.deliver(attempt, result)
            return
        delay = 0.0
        if isinstance(result, AuthDenied) and is_refused(attempt.pending.auth_request, result):
            self.record_failure(attempt)
            delay = self.failure_delay - result.wait
        else:
            self.end_turn(attempt)
            if isinstance(result, AuthDeferred):
                self._remember_deferred(attempt)
        if delay > 0:
            attempt.timer = self.call_later(delay, partial(attempt.deliver, result))
        else:
            attempt.deliver(result)

    def deliver(self, attempt: LoginAttempt, result: Decision | AuthUnavailable) -> None:
        """Pass a result to a session; what that raises ends the session only."""
        self._attempts.pop(attempt.pending, None)
        # The session refers to an allowed login until the mail server decides: no cycle of both.
        callback, attempt.owner = attempt.owner, None
        if callback is None:
            return
        try:
            callback(result)
        except Exception as error:  # an entry point
            self._context.handle_error(callback, error)

    def record_success(self, attempt: LoginAttempt) -> None:
        """The mail server has accepted a login."""
        if self._delays and self._state.clock() - attempt.known_since >= RECORD_AGAIN_SECONDS:
            self._state.logged_in(attempt.pair)
        self.end_turn(attempt)

    def record_failure(self, attempt: LoginAttempt) -> None:
        """The credentials of a login were refused."""
        state, credentials, is_new = self._state, attempt.credentials, True
        secret = b"" if credentials.password is None else credentials.password.reveal()
        credential = state.credential(credentials.user.lower(), secret)
        if self._delays:
            if attempt.is_known:
                attempt.address = self._address_key(attempt)
            is_new = state.penalize(attempt.address, credential, attempt.penalty)
            if is_new and attempt.is_known:
                state.pair_failed(attempt.pair)
        kind = FailedCredentials.NEW if is_new else FailedCredentials.REPEATED
        self._context.metrics.failed_credentials[kind].value += 1
        self.end_turn(attempt, attempt.address if is_new else 0)
        if self._block is not None:
            seconds = state.count_towards_block(self._block_key(attempt), credential, self._block)
            if seconds:
                self._report_block(attempt, seconds)

    def _report_block(self, attempt: LoginAttempt, seconds: float) -> None:
        self._context.metrics.addresses_blocked.value += 1
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        client = attempt.pending.auth_request.client
        self._log.event(
            LogLevel.WARN,
            "address_blocked",
            session=client.session_id,
            client=client.address,
            seconds=round(seconds),
            until=until.isoformat(timespec="seconds").replace("+00:00", "Z"),
        )

    def _refuse(self, attempt: LoginAttempt) -> None:
        """Refuse a login with a temporary error, in the next event loop iteration."""
        self._stop_waiting(attempt)
        self.end_turn(attempt)
        self._context.metrics.penalties[PenaltyAction.REFUSED].value += 1
        self._log_penalty(attempt, PenaltyAction.REFUSED, 0.0)
        denied = AuthDenied(TEMPORARY_ERROR[self.protocol], code=_CODE)
        attempt.timer = self.call_later(0.0, partial(attempt.deliver, denied))

    def _log_penalty(self, attempt: LoginAttempt, action: PenaltyAction, seconds: float) -> None:
        request = attempt.pending.auth_request
        self._log.event(
            LogLevel.INFO,
            "auth_penalty",
            session=request.client.session_id,
            client=request.client.address,
            user=request.credentials.user,
            action=action,
            penalty=attempt.penalty,
            wait=round(seconds, 3),
        )

    def _remember_deferred(self, attempt: LoginAttempt) -> None:
        """Remember that a login was delayed: the service has deferred it, and it will be sent again."""
        request = attempt.pending.auth_request
        self._deferred[request.client.session_id, request.attempt] = None
        if len(self._deferred) > _MAX_DEFERRED:
            self._deferred.popitem(last=False)

    def _identify(self, attempt: LoginAttempt) -> None:
        """Compute the keys that a login needs before it is passed on: one for users who are known."""
        state, request = self._state, attempt.pending.auth_request
        user = request.credentials.user.lower()
        if self._delays:
            pair = attempt.pair = state.pair_key(user_network(attempt.client), user)
            known_since = state.last_login(pair)
            if known_since:
                attempt.known_since, attempt.account = known_since, pair
                self._known.value += 1
            else:
                attempt.account = state.key_of(b"account", b"", user)
                attempt.address = self._address_key(attempt)
        if self._deferred and (deferred := (request.client.session_id, request.attempt)) in self._deferred:
            del self._deferred[deferred]
            attempt.has_waited = True

    def _forget_user(self, attempt: LoginAttempt) -> None:
        """Others of the same user and network failed while it waited: it is delayed like everybody's."""
        self._leave_queue(attempt)
        attempt.known_since = 0.0
        attempt.account = self._state.key_of(b"account", b"", attempt.credentials.user.lower())
        attempt.address = self._address_key(attempt)

    def _address_key(self, attempt: LoginAttempt) -> int:
        return self._state.key_of(b"address", penalty_network(attempt.client))

    def _block_key(self, attempt: LoginAttempt) -> int:
        return self._state.key_of(b"block", block_network(attempt.client))


def is_refused(request: AuthRequest, denied: AuthDenied) -> bool:
    """Whether a denial refuses the credentials.

    One with a 4xx code is an outage, and a policy server does not check them.
    """
    is_of_policy = request.policy is not None and request.policy.is_refused
    return not is_of_policy and not (denied.code or b"").startswith(b"4")
