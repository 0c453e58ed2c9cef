"""What is refused in a template before it is compiled, what is found out about it, and the tag of ours."""

import pytest
from jinja2 import Environment, TemplateError

from octavo.text.template_syntax import Generation, check_offered, takes_parts
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
        ("{% if x %}{% macro m() %}{% include 'x' %}{% endmacro %}{% endif %}", "Include"),
        ("{% autoescape true %}{% endautoescape %}", "ScopedEvalContextModifier"),
    ],
)
def test_what_chat_templates_are_not_offered(source: str, what: str) -> None:
    with pytest.raises(TemplateError, match=f"{what} is not offered to chat templates"):
        check_offered(Environment().parse(source))


def test_everything_else_is_offered() -> None:
    source = "{% macro m(x) %}{% for i in x %}{{ i }}{% endfor %}{% endmacro %}{% set y %}{{ m([1]) ~ 2 }}{% endset %}"
    check_offered(Environment().parse(source))


def test_a_generation_is_a_scope_of_its_own() -> None:
    source = "{% set y = 1 %}{% generation %}{% set y = 2 %}{{ y }}{% endgeneration %}{{ y }}"
    environment = Environment(extensions=[Generation])
    assert environment.from_string(source).render() == "21"
    with pytest.raises(TemplateError):
        environment.from_string("{% generation %}without an end")
