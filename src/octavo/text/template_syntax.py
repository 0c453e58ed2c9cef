"""What is changed in a chat template's syntax tree before Jinja compiles it. Knows no limits and no values.

Whatever Jinja would do by itself without asking the environment (turn a loop, join text, make a list, cut a slice) is
sent through filters of ours. A template cannot spell their names: they begin with a space.
"""

from typing import Final, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

TICKING: Final = " ticking"  # the items of a loop
MADE: Final = " made"  # a list, tuple or dict as it is written; a slice
JOINED: Final = " joined"  # the operator ~


class Metering(NodeTransformer):
    """Sends what Jinja would do by itself through the meter: turns of loops, `~`, lists and dicts, slices."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(node.iter, TICKING)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node.nodes[0], JOINED, node.nodes[1:])

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, MADE)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, MADE) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, MADE) if isinstance(node.arg, nodes.Slice) else node

    def _refused(self, node: nodes.Node) -> nodes.Node:
        raise TemplateError(f"line {node.lineno}: {type(node).__name__} is not offered to chat templates")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _refused  # noqa: N815
    visit_ScopedEvalContextModifier = visit_EvalContextModifier = _refused  # noqa: N815


def _filtered(node: nodes.Node, name: str, args: list[nodes.Expr] | None = None) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, args or [], [], None, None, lineno=node.lineno)


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


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
