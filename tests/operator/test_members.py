# SPDX-License-Identifier: Apache-2.0
"""Members of Services from EndpointSlices and from the lists before."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mailproxy_config.upstream_members import MemberState, parse_members
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.errors import ConditionCause
from mailproxy_operator.members.endpoints import endpoints
from mailproxy_operator.members.groups import ServiceGroup, ServiceState, service_groups
from mailproxy_operator.members.member_lists import NO_MEMBERS, Members, members
from mailproxy_operator.reasons import Reason
from mailproxy_operator.render import planned
from mailproxy_operator.settings import Platform
from support.endpoint_slices import endpoint, service, slice_of
from support.operator_bodies import body, server

NOW = 1_000_000.0
KEY = Key("mail", "dovecot")


def group(*ports: str, grace: float = 60.0, name: str = "dovecot") -> ServiceGroup:
    used = frozenset(ports or ("143",))
    return ServiceGroup(name=name, service=KEY, ports=used, needed=used, grace=grace)


def state(*slices: Any, of: Any = None) -> ServiceState:
    made = service() if of is None else of
    return ServiceState(service=made, endpoints=endpoints(slices, made["spec"].get("ipFamilies", ())))


def computed(
    found: ServiceState, previous: str = "", *, now: float = NOW, of: ServiceGroup | None = None
) -> Members:
    return members([of or group()], {KEY: found}, previous, now)


def shown(found: Members) -> dict[str, tuple[str, ...]]:
    """State and addresses of each member."""
    listed = parse_members(found.text.encode()).upstreams["dovecot"].members
    return {member.id: (str(member.state), *member.addresses) for member in listed}


def test_ready_endpoints_are_members_by_host_name_or_uid() -> None:
    found = computed(
        state(slice_of(endpoint(0), endpoint(1, hostname=None), endpoint(2, ready=None, serving=None)))
    )
    assert shown(found) == {
        "dovecot-0": ("Ready", "192.0.2.10"),
        "uid-1": ("Ready", "192.0.2.11"),
        "dovecot-2": ("Ready", "192.0.2.12"),
    }
    [group_state] = found.groups
    assert (group_state.ready, group_state.total, group_state.cause) == (3, 3, None)
    assert found.ports == {10143}


def test_no_identifier_is_an_address_of_a_pod() -> None:
    found = endpoints([slice_of(endpoint(0, hostname=None), endpoint(1, hostname=None, uid=None))])
    # An endpoint without pod was written by hand.
    assert [each.id for each in found] == ["192.0.2.11", "uid-0"]


@pytest.mark.parametrize("uid", ["a/b", "x" * 300, "a b", "\n", "-a", "é"])
def test_uid_that_is_no_identifier_is_replaced_by_the_address(uid: str) -> None:
    # An EndpointSlice that was written by hand may have any uid, and the proxy refuses the whole document.
    found = computed(state(slice_of(endpoint(0, hostname=None, uid=uid), endpoint(1))))
    assert list(shown(found)) == ["192.0.2.10", "dovecot-1"]
    assert computed(state(slice_of(endpoint(0, hostname=None, uid=uid), endpoint(1))), found.text) == found


def test_addresses_with_a_zone_are_left_out() -> None:
    assert endpoints([slice_of(endpoint(0, address="fe80::1%eth0"), family="IPv6")]) == ()


def test_families_of_an_endpoint_without_pod_are_one_member_by_its_host_name() -> None:
    six = slice_of(endpoint(0, address="2001:db8::10", uid=None), family="IPv6")
    four = slice_of(endpoint(0, uid=None))
    assert shown(computed(state(six, four)))["dovecot-0"][1:] == ("192.0.2.10", "2001:db8::10")


def test_addresses_of_both_families_are_one_member_in_the_order_of_the_service() -> None:
    six = slice_of(endpoint(0, address="2001:DB8::10"), family="IPv6")
    four = slice_of(endpoint(0))
    dual = service(ipFamilies=["IPv6", "IPv4"])
    assert shown(computed(state(four, six, of=dual)))["dovecot-0"][1:] == ("2001:db8::10", "192.0.2.10")
    assert shown(computed(state(six, four)))["dovecot-0"][1:] == ("192.0.2.10", "2001:db8::10")


def test_endpoint_in_several_slices_is_one_member_and_the_ready_entry_counts() -> None:
    old = slice_of(endpoint(0, ready=False, serving=False), endpoint(1))
    new = slice_of(endpoint(0), endpoint(2))
    assert shown(computed(state(old, new))) == shown(computed(state(new, old)))
    assert shown(computed(state(old, new))) == {
        f"dovecot-{number}": ("Ready", f"192.0.2.1{number}") for number in range(3)
    }


def test_pod_that_replaces_another_of_its_name_counts() -> None:
    old = slice_of(endpoint(0, ready=False, terminating=True))
    new = slice_of(endpoint(0, uid="uid-new", address="192.0.2.99"))
    assert shown(computed(state(old, new))) == {"dovecot-0": ("Ready", "192.0.2.99")}


def test_unready_pod_of_a_service_that_publishes_not_ready_addresses_is_not_ready() -> None:
    found = state(slice_of(endpoint(0, ready=True, serving=False), endpoint(1)))
    before = computed(state(slice_of(endpoint(0), endpoint(1)))).text
    assert shown(computed(found, before))["dovecot-0"][0] == "Gone"


def test_names_and_numbers_of_ports_are_those_of_the_service() -> None:
    slices = slice_of(endpoint(0), ports={"imap": 10143, "imaps": 10993})
    of = service(ports=[("imap", 143, "TCP"), ("imaps", 993, "TCP"), ("dns", 53, "UDP")])
    found = members([group("143", "993", "imaps")], {KEY: state(slices, of=of)}, "", NOW)
    [member] = parse_members(found.text.encode()).upstreams["dovecot"].members
    assert member.ports == {"143": 10143, "993": 10993, "imaps": 10993}
    found = members([group("53", "143")], {KEY: state(slices, of=of)}, "", NOW)
    [group_state] = found.groups
    assert group_state.cause == ConditionCause(
        Reason.PORT_NOT_FOUND,
        "upstream dovecot: Service mail/dovecot has no TCP port 53 (it has 143 imap, 993 imaps): set "
        "service.port, or add the port",
    )


def test_port_that_no_route_leads_to_is_missing_only_if_there_is_no_other() -> None:
    """An authentication service or a table may name any group, at a server of any protocol."""
    found = state(slice_of(endpoint(0)))
    named = replace(group("143", "587"), needed=frozenset())
    assert computed(found, of=named).groups[0].cause is None
    cause = computed(found, of=replace(named, ports=frozenset({"110", "587"}))).groups[0].cause
    assert cause is not None
    assert cause.message.startswith("upstream dovecot: Service mail/dovecot has no TCP port 110, 587 (it has")
    cause = computed(found, of=replace(named, needed=frozenset({"587"}))).groups[0].cause
    assert cause is not None
    assert "has no TCP port 587 (" in cause.message


def test_slices_of_one_service_may_have_different_ports() -> None:
    found = computed(state(slice_of(endpoint(0)), slice_of(endpoint(1), ports={"imap": 20143})))
    listed = parse_members(found.text.encode()).upstreams["dovecot"].members
    assert [member.ports for member in listed] == [{"143": 10143}, {"143": 20143}]


def test_headless_service_without_the_port_has_members_at_the_port_itself() -> None:
    of = service(clusterIP="None", ports=[("lmtp", 24, "TCP")])
    found = computed(state(slice_of(endpoint(0), ports={"lmtp": 24}), of=of))
    [member] = parse_members(found.text.encode()).upstreams["dovecot"].members
    assert member.ports == {"143": 143}
    assert found.groups[0].cause is None
    named = members([group("imap")], {KEY: state(slice_of(endpoint(0)), of=of)}, "", NOW)
    assert named.groups[0].cause is not None
    assert named.groups[0].cause.reason is Reason.PORT_NOT_FOUND


def test_restarted_pod_stays_a_member_and_keeps_its_identifier() -> None:
    everybody = [endpoint(0), endpoint(1)]
    text = computed(state(slice_of(*everybody))).text
    steps = [
        (endpoint(1, ready=False, terminating=True), ("Draining", "192.0.2.11")),
        (None, ("Gone", "192.0.2.11")),
        (endpoint(1, uid="new", address="192.0.2.77", ready=False, serving=False), ("Gone", "192.0.2.77")),
        (endpoint(1, uid="new", address="192.0.2.77"), ("Ready", "192.0.2.77")),
    ]
    for number, (each, expected) in enumerate(steps):
        given = [endpoint(0), *([each] if each else [])]
        found = computed(state(slice_of(*given)), text, now=NOW + number)
        assert shown(found) == {"dovecot-0": ("Ready", "192.0.2.10"), "dovecot-1": expected}
        text = found.text
    assert json.loads(text)["generation"] == 5


def test_vanished_member_is_removed_after_member_grace() -> None:
    text = computed(state(slice_of(endpoint(0), endpoint(1)))).text
    alone = state(slice_of(endpoint(0)))
    first = computed(alone, text)
    assert first.changes_at == NOW + 60
    # Neither time nor another unready state begins the grace again.
    assert computed(alone, first.text, now=NOW + 59).text == first.text
    unready = state(slice_of(endpoint(0), endpoint(1, ready=False, serving=False)))
    assert computed(unready, first.text, now=NOW + 59).changes_at == NOW + 60
    for left in (alone, unready):
        last = computed(left, first.text, now=NOW + 60)
        assert shown(last) == {"dovecot-0": ("Ready", "192.0.2.10")}
        assert last.changes_at is None
        assert shown(computed(left, last.text, now=NOW + 61)) == shown(last)


def test_member_is_kept_no_longer_than_member_grace_from_now() -> None:
    text = computed(state(slice_of(endpoint(0), endpoint(1)))).text
    alone = state(slice_of(endpoint(0)))
    # The clock was an hour fast, or memberGrace was longer.
    for fast in (computed(alone, text, now=NOW + 3600), computed(alone, text, of=group(grace=7200.0))):
        assert computed(alone, fast.text).changes_at == NOW + 60


def test_unread_service_does_not_ask_for_a_time_that_has_passed() -> None:
    text = computed(state(slice_of(endpoint(0), endpoint(1)))).text
    gone = computed(state(slice_of(endpoint(0))), text).text
    failure = ConditionCause(Reason.ENDPOINTS_FORBIDDEN, "no")
    found = computed(ServiceState(failure=failure), gone, now=NOW + 61)
    assert (found.text, found.changes_at) == (gone, None)


def test_member_grace_of_zero_removes_a_vanished_member_at_once() -> None:
    text = computed(state(slice_of(endpoint(0), endpoint(1)))).text
    found = computed(state(slice_of(endpoint(0))), text, of=group(grace=0.0))
    assert shown(found) == {"dovecot-0": ("Ready", "192.0.2.10")}


def test_pod_that_was_never_ready_is_no_member_once_there_is_a_list() -> None:
    starting = endpoint(1, ready=False, serving=False)
    # Without a list before, the operator cannot know: its users are not moved for now.
    assert shown(computed(state(slice_of(endpoint(0), starting))))["dovecot-1"][0] == "Gone"
    text = computed(state(slice_of(endpoint(0)))).text
    assert "dovecot-1" not in shown(computed(state(slice_of(endpoint(0), starting)), text))


def test_generation_grows_with_changes_only() -> None:
    first = computed(state(slice_of(endpoint(0))))
    assert json.loads(first.text)["generation"] == 1
    assert computed(state(slice_of(endpoint(0))), first.text, now=NOW + 5).text == first.text
    assert json.loads(computed(state(slice_of(endpoint(1))), first.text).text)["generation"] == 2


@pytest.mark.parametrize("previous", ["", "{", '{"generation":-1}', "[]"])
def test_invalid_document_before_is_replaced(previous: str) -> None:
    assert shown(computed(state(slice_of(endpoint(0))), previous)) == {"dovecot-0": ("Ready", "192.0.2.10")}


def test_list_of_another_service_has_no_effect() -> None:
    text = computed(state(slice_of(endpoint(0), endpoint(1)))).text
    other = replace(group(), service=Key("mail", "new"))
    found = members([other], {other.service: state(slice_of(endpoint(2)))}, text, NOW)
    assert shown(found) == {"dovecot-2": ("Ready", "192.0.2.12")}


def test_unread_service_keeps_its_members_or_has_none() -> None:
    failure = ConditionCause(Reason.ENDPOINTS_FORBIDDEN, "no")
    text = computed(state(slice_of(endpoint(0)))).text
    kept = computed(ServiceState(failure=failure), text)
    assert kept.text == text
    assert (kept.groups[0].ready, kept.groups[0].cause, kept.groups[0].is_unknown) == (1, failure, True)
    assert json.loads(computed(ServiceState(failure=failure)).text)["upstreams"] == {}
    unread = members([group()], {}, "", NOW)
    assert unread.groups[0].cause is not None
    assert unread.groups[0].cause.reason is Reason.ENDPOINTS_UNKNOWN


def test_reasons_of_services_without_ready_members() -> None:
    def reason(found: ServiceState, previous: str = "") -> Reason | None:
        cause = computed(found, previous).groups[0].cause
        return cause and cause.reason

    assert reason(ServiceState()) is Reason.SERVICE_NOT_FOUND
    assert reason(state()) is Reason.NO_READY_MEMBERS
    assert reason(state(slice_of(endpoint(0, ready=False, serving=False)))) is Reason.NO_READY_MEMBERS
    assert reason(state(of=service(ports=[("imap", 1143, "TCP")]))) is Reason.PORT_NOT_FOUND
    external = {"spec": {"type": "ExternalName", "externalName": "imap.example.org"}}
    found = computed(ServiceState(service=external))
    assert (found.groups[0].cause, json.loads(found.text)["upstreams"]) == (None, {})


def test_of_too_many_members_the_ready_ones_are_used() -> None:
    many = [endpoint(number, address=f"10.0.{number // 200}.{number % 200}") for number in range(1001)]
    text = computed(state(slice_of(*many[:1000]))).text
    found = computed(state(slice_of(*many[1:])), text)
    listed = parse_members(found.text.encode()).upstreams["dovecot"]
    assert (listed.count(MemberState.READY), listed.count(MemberState.GONE)) == (1000, 0)
    assert found.groups[0].cause is not None
    assert found.groups[0].cause.reason is Reason.TOO_MANY_MEMBERS


def test_document_that_does_not_fit_into_a_config_map_is_not_written() -> None:
    many = [
        endpoint(n, hostname=f"{'d' * 58}-{n}", address=f"10.0.{n // 200}.{n % 200}") for n in range(1000)
    ]
    slices = slice_of(*many)
    groups = [group(name=f"group-{number}") for number in range(8)]
    found = members(groups, {KEY: state(slices)}, "before", NOW)
    assert found.text == "before"
    assert {each.cause.reason for each in found.groups if each.cause} == {Reason.TOO_MANY_MEMBERS}
    # NetworkPolicies still permit the members that stay in use.
    before = members(groups[:1], {KEY: state(slice_of(endpoint(0)))}, "", NOW)
    found = members(groups, {KEY: state(slices)}, before.text, NOW)
    assert (found.text, found.ports) == (before.text, {10143})


def test_groups_of_a_resource_have_the_ports_of_their_protocols() -> None:
    upstreams = [
        {"name": "a", "service": {"name": "dovecot"}, "memberGrace": "5m"},
        {"name": "b", "service": {"name": "dovecot", "namespace": "other", "port": "imap"}},
        {"name": "c", "service": {"name": "tls"}, "proxySsl": "Enabled"},
        {"name": "d", "servers": [{"address": "192.0.2.1"}]},
        {"name": "unused", "service": {"name": "unused"}},
    ]
    routes = [{"domains": [f"{each}.example"], "upstream": each} for each in "abcd"]
    spec = {
        "mail": {"authMode": "Upstream", "routes": routes},
        "upstreams": upstreams,
        "servers": [server("imap", "imap", 143), server("pop3", "pop3", 110)],
    }
    plan = planned(Resource.read(body(**spec)), Platform())
    found = service_groups(plan.config, plan.resource.manifest.upstreams)
    assert [(each.name, str(each.service), sorted(each.ports), each.grace) for each in found] == [
        ("a", "mail/dovecot", ["110", "143"], 300.0),
        ("b", "other/dovecot", ["imap"], 60.0),
        ("c", "mail/tls", ["993", "995"], 60.0),
    ]
    assert [each.needed for each in found] == [each.ports for each in found]
    assert plan.has_members
    assert members((), {}, "x", NOW) is NO_MEMBERS


@pytest.mark.parametrize(
    "mail",
    [
        {"authHttp": "http://auth.mail.svc:9000/auth"},
        {
            "authMode": "Upstream",
            "routes": [
                {"table": {"configMapKeyRef": {"name": "moves", "key": "users"}}},
                {"domains": ["*"], "upstream": "a"},
            ],
        },
    ],
)
def test_group_is_needed_at_the_servers_whose_routes_name_it(mail: Any) -> None:
    upstreams = [{"name": name, "service": {"name": name}} for name in "ab"]
    spec = {"mail": mail, "upstreams": upstreams, "servers": [server("imap", "imap", 143)]}
    plan = planned(Resource.read(body(**spec)), Platform())
    found = service_groups(plan.config, plan.resource.manifest.upstreams)
    assert [each.ports for each in found] == [{"143"}, {"143"}]
    assert [each.needed for each in found] == [{"143"} if "routes" in mail else frozenset(), frozenset()]
