"""What an import brings along, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.errors import ModelNotFoundError, OctavoError

HEAVY = ("torch", "transformers", "huggingface_hub", "starlette", "numpy", "jinja2", "tokenizers", "rich", "yaml")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def loaded_after(code: str) -> set[str]:
    done = run_python(f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light():
    loaded = loaded_after("import octavo")
    assert not loaded & set(HEAVY)
    assert {name for name in loaded if name.startswith("octavo")} == {"octavo"}


@pytest.mark.parametrize(
    "code",
    [
        "from octavo import EngineConfig, SamplingParams, RequestOutput, OctavoError; EngineConfig(); SamplingParams()",
        "from octavo.cli import main, flags; main.make_parser(None)",
        "from octavo import hub; hub.list_models",
        "from octavo.ops import hardware; hardware.processor(), hardware.memory()",
    ],
)
def test_light_parts_stay_light(code: str):
    assert not loaded_after(code) & {"torch", "transformers", "huggingface_hub", "starlette"}


def test_a_cpu_needs_no_torch_up_to_the_last_token(tiny_model: Path):
    code = "import sys; from octavo import LLM, SamplingParams; llm = LLM(sys.argv[1], device='cpu')"
    code += "; params = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=2)"
    code += "; print(len(llm.generate('a', params)[0].outputs[0].token_ids))"
    done = run_python(
        f"{code}\nprint([name for name in ('torch', 'transformers') if name in sys.modules])", str(tiny_model)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3", "[]"]


def test_importing_the_hub_imports_neither_library() -> None:
    code = "import sys, octavo.hub; print(*sorted({'huggingface_hub', 'rich', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert issubclass(ModelNotFoundError, OctavoError)
