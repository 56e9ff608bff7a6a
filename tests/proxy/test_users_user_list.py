# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import tempfile
from typing import Final

import pytest

from mailproxy.routing.table_compiler import TableRefused
from mailproxy.users import user_list
from mailproxy.users.password_hash import hash_cost
from mailproxy.users.user_list import UserList, compile_users

BCRYPT: Final = b"$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
SHA512: Final = (
    b"$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"
)


def loaded(text: bytes) -> UserList:
    with tempfile.TemporaryFile() as file:
        file.write(compile_users(text))
        file.flush()
        return UserList(file.fileno())


def refusals(text: bytes) -> list[tuple[int, str]]:
    with pytest.raises(TableRefused) as error:
        compile_users(text)
    return list(error.value.problems)


def test_user_is_found_by_local_part_as_written_and_domain_without_case() -> None:
    users = loaded(
        b"\xef\xbb\xbf# users\r\n\nbob@Example.ORG:%b\r\nann:%b:1000:1000::/home\n" % (BCRYPT, SHA512)
    )
    assert len(users) == 2
    assert users.find(b"bob@example.org") == users.find(b"bob@EXAMPLE.org") == BCRYPT
    assert users.find(b"ann") == SHA512
    for other in (b"Bob@example.org", b"ann@", b"", b"zoe", b"a", b"bob@x@example.org", b"ann\0", b"x" * 300):
        assert users.find(other) is None


def test_dummy_has_the_costs_of_most_users() -> None:
    users = loaded(b"a:%b\nb:%b\nc:%b\n" % (BCRYPT, SHA512, SHA512))
    assert hash_cost(users.dummy) == hash_cost(SHA512)
    assert users.dummy != SHA512


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"bob", 'a line is "user:hash"'),
        (b":" + BCRYPT, "a user has 1 to 255 bytes, no control character, and at most one @"),
        (b"a@b@c:" + BCRYPT, "a user has 1 to 255 bytes"),
        (b"a\tb:" + BCRYPT, "a user has 1 to 255 bytes"),
        (b"x" * 256 + b":" + BCRYPT, "a user has 1 to 255 bytes"),
        (b"bob:$apr1$x$y", "the hash is MD5, which is too weak; make one with"),
        (b"bob: " + BCRYPT, "the hash is neither bcrypt nor sha512-crypt nor argon2id"),
        (b"ann@EXAMPLE.org:" + SHA512, "the user is already in line 1: remove one of the two"),
    ],
)
def test_list_with_invalid_line_is_refused_as_a_whole(line: bytes, reason: str) -> None:
    [(number, found)] = refusals(b"ann@example.org:%b\n%b\n" % (BCRYPT, line))
    assert number == 2
    assert found.startswith(reason)
    assert "bob" not in found  # no part of a line


def test_some_invalid_lines_are_reported_and_an_empty_list_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [number for number, _ in refusals(b"x\n" * 50)] == list(range(1, 11))
    assert refusals(b"# nobody\n") == [(0, 'has no user: a line is "user:hash"')]
    monkeypatch.setattr(user_list, "MAX_LIST_BYTES", 10)
    assert refusals(b"x" * 11) == [(0, "has more than 10 bytes: use an authentication service")]


def test_each_of_ten_thousand_users_is_found() -> None:
    users = loaded(b"".join(b"user%d@example.org:%b\n" % (number, BCRYPT) for number in range(10_000)))
    assert len(users) == 10_000
    assert {users.find(b"user%d@example.org" % number) for number in range(10_000)} == {BCRYPT}
    assert users.find(b"user10000@example.org") is None


def test_file_of_another_kind_is_refused() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(64))
        file.flush()
        with pytest.raises(ValueError, match="no compiled list"):
            UserList(file.fileno())
