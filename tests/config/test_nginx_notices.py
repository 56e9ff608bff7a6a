# SPDX-License-Identifier: Apache-2.0
"""``convert`` reports what does not work in a pod."""

from __future__ import annotations

import pytest

from mailproxy_config.nginx.convert import parse_nginx


def notices_of(mail: str, *, only_to_print: bool = True, listen: str = "143") -> list[str]:
    text = f"mail {{ auth_http auth.example:9000;\n{mail}\nserver {{\nlisten {listen}; protocol imap;\n}}\n}}"
    found = parse_nginx(text, source="/n.conf", only_to_print=only_to_print)
    return [str(notice).removeprefix("/n.conf:") for notice in found.notices]


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("auth_http localhost:9000/auth;",
         '"auth_http": localhost is the pod itself on Kubernetes; name a Service, such as '
         "http://auth.mail.svc:9000/auth"),
        ("auth_http unix:/run/a:/auth;",
         '"auth_http": the socket /run/a is not in the pod; name a Service, such as http://auth.mail.svc:9000/auth'),
        ("auth_http_header X-Key HIDDEN;",
         '"auth_http_header": the value of X-Key is in plain text in the manifest; if it is a secret, '
         "use a Secret: {name: X-Key, valueFrom: {secretKeyRef: {name: SECRET, key: KEY}}}"),
        ("ssl_certificate c.pem; ssl_certificate_key k.pem;",
         '"ssl_certificate": /c.pem and /k.pem are not in the pod; put them into a Secret of type '
         "kubernetes.io/tls and write {secretName: NAME}"),
        ("ssl_dhparam /d.pem;",
         '"ssl_dhparam": /d.pem is not in the pod; put it into a Secret and write '
         "{secretKeyRef: {name: NAME, key: KEY}}"),
        ("ssl_session_ticket_key t;",
         '"ssl_session_ticket_key": /t is not in the pod; put it into a Secret and write '
         "{secretKeyRef: {name: NAME, key: KEY}}"),
        ("resolver 127.0.0.53;",
         '"resolver": 127.0.0.53 is the pod itself on Kubernetes; write {mode: System} for its name servers'),
        ("set_real_ip_from 127.0.0.1;",
         '"set_real_ip_from": 127.0.0.1 is the pod itself on Kubernetes; '
         "name the addresses of your load balancers or nodes"),
    ],
)  # fmt: skip
def test_values_that_do_not_work_in_a_pod_get_notices(line: str, note: str) -> None:
    notices = notices_of(line)
    assert notices == [f"2: {note}"]
    assert "HIDDEN" not in notices[0]
    assert notices_of(line, only_to_print=False) == []  # not printed: it runs on this machine


@pytest.mark.parametrize(
    ("listen", "note"),
    [
        ("127.0.0.1:143",
         "127.0.0.1 is the pod itself on Kubernetes and cannot be reached from outside; remove the address"),
        ("[::1]:143",
         "[::1] is the pod itself on Kubernetes and cannot be reached from outside; remove the address"),
        ("192.0.2.1:143", "a pod does not have 192.0.2.1; remove the address"),
        ("unix:/run/x", "unix:/run/x can be reached only inside the pod"),
    ],
)  # fmt: skip
def test_listen_address_of_another_host_gets_a_notice(listen: str, note: str) -> None:
    assert notices_of("", listen=listen) == [f'4: "listen": {note}']


@pytest.mark.parametrize("listen", ["143", "*:143", "0.0.0.0:143", "[::]:143"])
def test_wildcard_listen_address_gets_no_notice(listen: str) -> None:
    assert notices_of("set_real_ip_from 10.0.0.0/8; resolver 10.0.0.1;", listen=listen) == []
