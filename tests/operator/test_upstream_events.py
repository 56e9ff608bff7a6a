# SPDX-License-Identifier: Apache-2.0
"""Configuration errors that pods report become warning events, each once an hour."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from mailproxy_operator.api.cluster import Key, RunningConfig, UpstreamConfigError, UpstreamState
from mailproxy_operator.controller.hourly_events import MAX_EVENTS, REPEAT
from mailproxy_operator.controller.observed import Observed, Pod
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.controller.upstream_events import UpstreamEvents
from mailproxy_operator.settings import Platform
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster
from support.reasons_page import check_event

EDGE: Final = Key("mail", "edge")
NOW: Final = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
BODY: Final = {"metadata": {"name": "edge", "namespace": "mail", "uid": "u"}}


def error(stage: str = "xclient", failure: str = "", message: str = "set xclient") -> UpstreamConfigError:
    return UpstreamConfigError(stage=stage, failure=failure, message=message)


def observed(*errors: UpstreamConfigError, server: str = "smtp", pods: int = 2, **more: Any) -> Observed:
    running = RunningConfig("h", upstreams=(UpstreamState(server=server, errors=errors),))
    return Observed(pods=tuple(Pod(name=str(number), running=running, **more) for number in range(pods)))


def notes(events: list[dict[str, Any]]) -> list[str]:
    return [event["note"] for event in events]


def test_event_has_server_stage_and_what_to_set() -> None:
    [event] = UpstreamEvents().due(EDGE, BODY, observed(error()), NOW)
    assert event["note"] == "server smtp, stage xclient: set xclient"
    assert (event["type"], event["reason"]) == ("Warning", "UpstreamMisconfigured")
    assert event["regarding"]["uid"] == "u"
    check_event(event)


def test_error_that_lasts_gets_one_event_an_hour() -> None:
    events = UpstreamEvents()
    assert len(events.due(EDGE, BODY, observed(error()), NOW)) == 1
    again = observed(error(message="the same of another mail server"))
    assert events.due(EDGE, BODY, again, NOW + REPEAT - timedelta(seconds=1)) == []
    assert len(events.due(EDGE, BODY, again, NOW + REPEAT)) == 1


def test_other_errors_get_events_of_their_own() -> None:
    events = UpstreamEvents()
    events.due(EDGE, BODY, observed(error()), NOW)
    found = events.due(EDGE, BODY, observed(error(), error("tls", "name", "set proxySslName")), NOW)
    assert notes(found) == ["server smtp, stage tls: set proxySslName"]
    assert len(events.due(Key("mail", "other"), BODY, observed(error()), NOW)) == 1


def test_events_of_a_resource_are_limited() -> None:
    many = observed(*(error(str(number)) for number in range(50)))
    events = UpstreamEvents()
    assert len(events.due(EDGE, BODY, many, NOW)) == MAX_EVENTS
    assert events.due(EDGE, BODY, many, NOW) == []


def test_new_leader_repeats_no_event() -> None:
    """The API server refuses a second event of the same name."""
    names = {
        UpstreamEvents().due(EDGE, BODY, observed(error()), NOW)[0]["metadata"]["name"] for _ in range(2)
    }
    assert len(names) == 1
    [later] = UpstreamEvents().due(EDGE, BODY, observed(error()), NOW + REPEAT)
    assert later["metadata"]["name"] not in names


def test_terminating_pod_and_forgotten_resource() -> None:
    events = UpstreamEvents()
    assert events.due(EDGE, BODY, observed(error(), is_terminating=True), NOW) == []
    events.due(EDGE, BODY, observed(error()), NOW)
    events.forget(EDGE)
    assert len(events.due(EDGE, BODY, observed(error()), NOW)) == 1


async def test_reconcile_creates_the_event_once() -> None:
    cluster = MemoryCluster()
    cluster.put(body(replicas=1))
    reconciler = Reconciler(cluster, Platform(), now=lambda: NOW)
    await reconciler.reconcile(EDGE)
    cluster.roll_out("edge")
    digest = cluster.found_status("edge")["configHash"]
    states = (UpstreamState(server="imap", errors=(error("id"),)),)
    cluster.running["edge-0"] = RunningConfig(digest, upstreams=states)
    for _ in range(3):
        await reconciler.reconcile(EDGE)
    found = [event for event in cluster.events if event["reason"] == "UpstreamMisconfigured"]
    assert notes(found) == ["server imap, stage id: set xclient"]
