"""Runs pytest with another build of `octavo.ops._cpu` in the place of the installed one: FILE.so, pytest's words."""

import importlib.util
import os
import sys

import pytest


def replace_native(file: str) -> None:
    """Makes the extension module in `file` what `from octavo.ops import _cpu` gives."""
    import octavo.ops

    spec = importlib.util.spec_from_file_location("octavo.ops._cpu", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    octavo.ops._cpu = module


if __name__ == "__main__":
    os.environ["OCTAVO_SLOW_BUILD"] = "1"  # stand-ins and sanitizers: the unit tier's limit of time is not for these
    replace_native(sys.argv[1])
    raise SystemExit(pytest.main(sys.argv[2:]))
