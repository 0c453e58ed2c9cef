"""What is read from a chat template's syntax tree before it runs, and the tag that Jinja does not know."""

from typing import Final

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

_NOT_OFFERED: Final = (
    nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.ScopedEvalContextModifier,
    nodes.EvalContextModifier,
)  # fmt: skip


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def check_offered(tree: nodes.Template) -> None:
    """Refuse other templates and HTML escaping by name: `TemplateError`."""
    for found in tree.find_all(_NOT_OFFERED):
        raise TemplateError(f"line {found.lineno}: {type(found).__name__} is not offered to chat templates")


def takes_parts(tree: nodes.Template) -> bool:
    """Whether a template loops over a message's content, and so wants a list of parts as a list."""
    holders = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, frozenset()):
            holders.add(assign.target.name)
    return any(_is_content(loop.iter, frozenset(holders)) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, holders: frozenset[str]) -> bool:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    match node:
        case nodes.Getattr():
            return node.attr == "content"
        case nodes.Getitem():
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        case nodes.Name():
            return node.name in holders
    return False
