"""What one rendering may spend: time, output, memory; and what values weigh before they are made."""

import operator
import threading
import time
from collections.abc import Callable
from sys import getsizeof
from typing import Any

import pytest

from octavo.errors import RequestError
from octavo.text.chat import ChatTemplate
from octavo.text.meter import (
    LimitReached,
    Meter,
    RenderLimits,
    check_format,
    check_numbers,
    check_search,
    check_width,
    joined_bytes,
    method_bytes,
    percent_bytes,
    repeated_bytes,
    replaced_bytes,
    width_bytes,
)
from tests.support.chat_templates import USER


def test_output() -> None:
    limits = RenderLimits(seconds=20.0, output_chars=100)
    compiled = ChatTemplate({"default": "{{ messages[0].content }}"}, {}, limits=limits)
    assert len(compiled.render([{"role": "user", "content": "x" * 100}])) == 100
    with pytest.raises(RequestError, match="writes more than 100 characters"):
        compiled.render([{"role": "user", "content": "x" * 101}])


def test_time() -> None:
    compiled = ChatTemplate(
        {"default": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"}, {},
        limits=RenderLimits(seconds=0.1),
    )  # fmt: skip
    begun = time.monotonic()
    with pytest.raises(RequestError, match=r"takes longer than 0\.1 s"):
        compiled.render(USER)
    assert time.monotonic() - begun < 1.0


def test_memory() -> None:
    limits = RenderLimits(seconds=20.0, memory_bytes=1 << 20)
    compiled = ChatTemplate({"default": "{{ 'x' * 2000000 }}"}, {}, limits=limits)
    with pytest.raises(RequestError, match="makes more than 1 MiB of values"):
        compiled.render(USER)


def test_a_long_conversation_is_no_bomb() -> None:
    """3 million characters in 300 messages, through an ordinary template's string work."""
    source = "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
    source += "{{ m.content.split('</think>')[-1].strip() ~ '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 2000} for _ in range(300)]
    limits = RenderLimits(seconds=20.0)
    text = ChatTemplate({"default": source}, {}, limits=limits).render(messages)
    assert text.count("<|user|>") == 300


def test_one_rendering_costs_the_next_nothing() -> None:
    compiled = ChatTemplate({"default": "{{ messages[0].content * 3000000 }}"}, {})
    for _ in range(20):
        assert len(compiled.render([{"role": "user", "content": "x"}])) == 3_000_000


def test_threads_have_meters_of_their_own() -> None:
    source = "{% for i in range(messages[0].content | int) %}{% for j in range(1000) %}{% endfor %}{% endfor %}ok"
    compiled = ChatTemplate({"default": source}, {}, limits=RenderLimits(seconds=1.0))
    outcomes: dict[int, str] = {}

    def render(number: int) -> None:
        content = "90000" if number % 2 else "1"
        try:
            outcomes[number] = compiled.render([{"role": "user", "content": content}])
        except RequestError as error:
            outcomes[number] = str(error)

    threads = [threading.Thread(target=render, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {outcomes[number] for number in (0, 2, 4)} == {"ok"}
    assert all("takes longer than 1 s" in outcomes[number] for number in (1, 3, 5))


def meter(**limits: float) -> Meter:
    return Meter(RenderLimits(**({"seconds": 20.0} | limits)))


def test_time_and_memory_run_out() -> None:
    spent = meter(seconds=-1.0)
    with pytest.raises(LimitReached, match="takes longer than -1 s"):
        spent.tick()
    with pytest.raises(LimitReached, match="takes longer"):
        list(spent.ticking([1, 2]))
    small = meter(memory_bytes=1000)
    small.charge(600)
    small.charge(400)
    with pytest.raises(LimitReached, match="makes more than 0 MiB"):
        small.charge(1)


def test_a_value_is_weighed_as_a_tree() -> None:
    """What is reached twice counts twice, as it would in a text that is made of it."""
    one = ["x" * 1000]
    weight = meter().weigh(one)
    assert weight > 1000
    assert meter().weigh([one, one]) > 2 * weight
    assert meter().weigh({"a": one, "b": one}) > 2 * weight
    value: list[Any] = one
    for _ in range(14):
        value = [value, value]
    with pytest.raises(LimitReached, match="a value of more than 32 MiB"):
        meter().weigh([value, value])


def test_a_value_has_so_many_levels_and_no_more() -> None:
    value: list[Any] = []
    for _ in range(99):
        value = [value]
    meter().weigh(value)
    with pytest.raises(LimitReached, match="more than 100 levels deep"):
        meter().weigh([value])


def test_what_was_made_is_paid_for() -> None:
    account = meter(memory_bytes=10_000)
    assert account.made("x" * 5000) == "x" * 5000
    with pytest.raises(LimitReached):
        account.made("x" * 5000)
    assert list(meter().charging(iter("ab"))) == ["a", "b"]
    with pytest.raises(LimitReached):
        list(meter(memory_bytes=100).charging("x" * 60 for _ in range(3)))
    with pytest.raises(LimitReached, match="an integer of more than 65536 bits"):
        meter().made(1 << 65_536)
    assert meter().made((1 << 65_536) - 1)


def test_what_can_be_measured_is_left_as_it_is_and_what_cannot_is_collected() -> None:
    for items in ("text", [1], (1,), {"a": 1}, {"a": 1}.items()):
        assert meter().collected(items) is items
    assert meter().collected(iter([1, 2])) == [1, 2]


# What an operation will make is known before it is done: at least as much as it then takes.
PERCENT = ("%s and %900d", ("x" * 5000, 1))
OPERATIONS = {
    "repeat": (lambda: repeated_bytes(meter(), "x" * 1000, 50), lambda: "x" * 1000 * 50),
    "repeat wide": (lambda: repeated_bytes(meter(), "é" * 1000, 50), lambda: "é" * 1000 * 50),
    "center": (lambda: width_bytes("x", 90_000), lambda: "x".center(90_000)),
    "replace": (lambda: replaced_bytes("a" * 500, "a", "b" * 200), lambda: ("a" * 500).replace("a", "b" * 200)),
    "replace nothing": (lambda: replaced_bytes("a" * 500, "", "b" * 200), lambda: ("a" * 500).replace("", "b" * 200)),
    "join": (lambda: joined_bytes(meter(), "-" * 90, ["x" * 10] * 900), lambda: ("-" * 90).join(["x" * 10] * 900)),
    "join characters": (lambda: joined_bytes(meter(), "-" * 90, "x" * 900), lambda: ("-" * 90).join("x" * 900)),
    "percent": (lambda: percent_bytes(meter(), *PERCENT), lambda: operator.mod(*PERCENT)),
    "percent of a mapping": (
        lambda: percent_bytes(meter(), "%(a)s" * 90, {"a": "x" * 900}), lambda: "%(a)s" * 90 % {"a": "x" * 900},
    ),
    "expandtabs": (
        lambda: method_bytes(meter(), "expandtabs", "\t" * 90, (900,), {}), lambda: ("\t" * 90).expandtabs(900),
    ),
    "zfill": (lambda: method_bytes(meter(), "zfill", "1", (9000,), {}), lambda: "1".zfill(9000)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_cost_is_no_less_than_what_is_made(name: str) -> None:
    cost, result = OPERATIONS[name]
    assert getsizeof(result()) <= cost() <= 20 * getsizeof(result())


def test_cutting_costs_a_list_of_strings() -> None:
    text = "x " * 1000
    pieces = text.split()
    taken = getsizeof(pieces) + sum(map(getsizeof, pieces))
    assert method_bytes(meter(), "split", text, (), {}) >= taken
    assert method_bytes(meter(), "split", text, (" ",), {}) >= taken
    assert method_bytes(meter(), "split", text, (" ", 1), {}) < taken
    assert method_bytes(meter(), "upper", text, (), {}) == 0


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_width(100_001), "a width of 1e[+]05; at most 100000"),
        (lambda: check_width(-1e9), "a width of"),
        (lambda: check_format("x" * 100_001), "a format of more than 100000 characters"),
        (lambda: check_search("a" * 100_000, "b" * 10_000), "seeks 10000 characters in 100000"),
        (lambda: check_numbers("**", 2, 65_536), "an integer of more than 65536 bits"),
        (lambda: check_numbers("*", 1 << 40_000, 1 << 40_000), "an integer of more than"),
        (lambda: percent_bytes(meter(), "%*d", (1, 2)), "a width of"),
        (lambda: percent_bytes(meter(), "%.999999f", 1), "a width of"),
    ],
)
def test_what_is_absurd_is_refused(check: Callable[[], object], message: str) -> None:
    with pytest.raises(LimitReached, match=message):
        check()


def test_what_is_large_and_not_absurd_passes() -> None:
    check_width(100_000)
    check_width("no number")
    check_format("x" * 100_000)
    check_search("a" * 100_000, "b")
    check_numbers("**", 2, 30_000)
    check_numbers("*", "text", 3)
    check_numbers("+", 1.5, 10**9)
