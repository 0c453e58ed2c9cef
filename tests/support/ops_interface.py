"""What the protocol `Ops` asks for, and where a backend's functions differ from it."""

import inspect
from typing import Any

from octavo.ops.interface import Ops


def operations() -> dict[str, list[tuple[str, Any, Any]]]:
    """The functions of `Ops`, and of each its parameters: name, kind and default."""
    members = {name: member for name, member in vars(Ops).items() if inspect.isfunction(member) and name[0] != "_"}
    return {name: parameters(member)[1:] for name, member in members.items()}  # without `self`


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(item.name, item.kind, item.default) for item in inspect.signature(function).parameters.values()]


def differences(backend: Any) -> list[str]:
    """What a backend lacks, and what it calls otherwise."""
    found = []
    for name, expected in operations().items():
        function = vars(backend).get(name)
        if not callable(function):
            found.append(f"{name} is missing")
        elif parameters(function) != expected:
            found.append(f"{name} has the parameters {[item[0] for item in parameters(function)]}")
    return found
