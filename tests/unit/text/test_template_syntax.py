"""What is changed in a template before it is compiled, what is refused there, and what is found out about it."""

from collections import Counter
from typing import Any

import pytest
from jinja2 import Environment, TemplateError

from octavo.text.template_syntax import JOINED, MADE, TICKING, Generation, Metering, takes_parts
from tests.support.chat_templates import template

MACRO = "{% macro m(content) %}{% for p in content %}{{ p.text }}+{% endfor %}{% endmacro %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}+{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for p in m['content'] | list %}{{ p['text'] }}+{% endfor %}{% endfor %}",
        "{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p.text }}+{% endfor %}{% endfor %}",
        MACRO + "{{ m(messages[0].content) }}",
    ],
)  # fmt: skip
def test_parts_stay_where_the_template_loops_over_them(source: str) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert template(source).render([{"role": "user", "content": parts}]) == "one+two+"


def wants_parts(source: str) -> bool:
    return takes_parts(Environment().parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "{% for p in messages[0].content %}{% endfor %}",
        "{% for p in messages[0]['content'] %}{% endfor %}",
        "{% for p in (m.content | list) | reverse %}{% endfor %}",
        "{% set c = m.content %}{% if c %}{% for p in c %}{% endfor %}{% endif %}",
        "{% for p in content %}{% endfor %}",
    ],
)
def test_a_loop_over_the_content_wants_parts(source: str) -> None:
    assert wants_parts(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for t in m.tool_calls %}{% endfor %}",
        "{% for i in range(3) %}{{ content }}{% endfor %}",
        "{% set c = m.role %}{% for p in c %}{% endfor %}",
        "{{ m.content | length }}",
    ],
)
def test_other_loops_want_text(source: str) -> None:
    assert not wants_parts(source)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{% include 'x' %}", "Include"),
        ("{% import 'x' as y %}", "Import"),
        ("{% from 'x' import y %}", "FromImport"),
        ("{% extends 'x' %}", "Extends"),
        ("a\n\n{% include 'x' %}", "line 3: Include"),
    ],
)
def test_what_chat_templates_are_not_offered(source: str, what: str) -> None:
    with pytest.raises(TemplateError, match=f"{what} is not offered to chat templates"):
        Metering().visit(Environment().parse(source))


class Counted:
    """Stands for the meter: counts what is sent through the filters, and changes nothing."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.environment = Environment(extensions=[Generation])
        self.environment.filters |= {
            TICKING: lambda items: self.count("turns", items),
            MADE: lambda value: self.count("made", value),
            JOINED: lambda first, *rest: self.count("joined", "".join(map(str, [first, *rest]))),
        }

    def count(self, what: str, value: Any) -> Any:
        self.calls[what] += 1
        return value

    def render(self, source: str) -> str:
        tree = Metering().visit(self.environment.parse(source))
        return self.environment.from_string(tree).render(x=[1, 2, 3], text="abc")


@pytest.mark.parametrize(
    ("source", "text", "calls"),
    [
        ("{% for i in x %}{{ i }}{% endfor %}", "123", {"turns": 1}),
        ("{% for i in x if i > 1 %}{% for j in x %}{{ j }}{% endfor %}{% endfor %}", "123123", {"turns": 3}),
        ("{{ text ~ 1 ~ text }}", "abc1abc", {"joined": 1}),
        ("{{ [1, [2]] | length }}", "2", {"made": 2}),
        ("{{ {'a': (1, 2)} | length }}", "1", {"made": 2}),
        ("{{ text[1:] ~ text[0] }}", "bca", {"made": 1, "joined": 1}),
        ("{% set a, b = 1, 2 %}{{ b }}", "2", {"made": 1}),
        ("{{ text }}", "abc", {}),
        ("a{% generation %}{{ text }}{% endgeneration %}b", "aabcb", {}),
    ],
)
def test_what_jinja_does_by_itself_goes_through_filters(source: str, text: str, calls: dict[str, int]) -> None:
    counted = Counted()
    assert counted.render(source) == text
    assert dict(counted.calls) == calls


def test_a_template_cannot_spell_the_names_of_these_filters() -> None:
    """They begin with a space, and a name in a template has none."""
    environment = Counted().environment
    for name in (TICKING, MADE, JOINED):
        assert name in environment.filters
        with pytest.raises(TemplateError, match="No filter named"):
            environment.from_string(f"{{{{ x |{name} }}}}")


def test_a_generation_is_a_scope_of_its_own() -> None:
    source = "{% set y = 1 %}{% generation %}{% set y = 2 %}{{ y }}{% endgeneration %}{{ y }}"
    assert Counted().render(source) == "21"
    with pytest.raises(TemplateError):
        Counted().render("{% generation %}without an end")
