"""The audit finds what is missing, what was overtaken and what came twice."""

from __future__ import annotations

import pytest

from connpool.cli.audit import Audit, audit, line_of

GROUPS = (("A", "B"), ("C",))


def log_of(*numbers: int, sender: str = "s") -> bytes:
    return b"".join(line_of(sender, number) + b"\n" for number in numbers)


def look(accepted: dict[int, int | None], **logs: bytes) -> Audit:
    return audit({"s": accepted}, {"A": b"", "B": b"", "C": b"", **logs}, GROUPS)


def test_what_is_where_it_was_due_is_clean() -> None:
    found = look({1: 0, 2: 1}, A=log_of(1), B=log_of(1), C=log_of(2))
    assert found.is_clean
    assert found.received == {"A": 1, "B": 1, "C": 1}
    assert set(found.repeated.values()) == {0}


def test_a_group_needs_a_copy_at_each_of_its_members() -> None:
    found = look({1: 0}, A=log_of(1), C=log_of(1))
    assert found.missing == ("s 1 is not at B",)
    assert not found.is_clean


@pytest.mark.parametrize(("logs", "is_clean"), [("AB", True), ("C", True), ("A", False), ("", False)])
def test_what_no_group_took_needs_all_members_of_any_one(logs: str, is_clean: bool) -> None:
    found = look({7: None}, **dict.fromkeys(logs, log_of(7)))
    assert found.is_clean is is_clean
    assert is_clean or found.missing[0].startswith("s 7 is not at ")


def test_what_comes_first_after_something_newer_was_overtaken() -> None:
    assert look({}, C=log_of(1, 3, 2)).disordered == ("s 2 came to C after 3",)


def test_what_comes_again_was_repeated_and_is_no_disorder() -> None:
    found = look({}, A=log_of(1, 2, 1, 2, 3))
    assert found.is_clean
    assert (found.repeated["A", "s"], found.received["A"]) == (2, 5)


def test_senders_do_not_overtake_one_another() -> None:
    assert look({}, A=log_of(5) + log_of(1, sender="other") + log_of(6)).is_clean


def test_a_line_that_a_kill_tore_does_not_count() -> None:
    assert look({12: 1}, C=b"s 12\ns 1\ns\n\n3\ns 13 s 14\n").received["C"] == 2
