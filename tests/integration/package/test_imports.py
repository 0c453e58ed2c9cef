"""What an import brings along, each in a process of its own."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.errors import ModelNotFoundError, OctavoError

HEAVY = ("torch", "transformers", "huggingface_hub", "starlette", "numpy", "jinja2", "tokenizers", "rich", "yaml")


# What no start needs: each costs from 3 to 1,000 ms. NumPy's own parts are named where they can be avoided.
NEVER = (
    "torch", "transformers", "huggingface_hub", "safetensors", "jinja2", "markupsafe", "rich", "yaml", "psutil",
    "orjson", "fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "httptools", "matplotlib",
    "asyncio", "ssl", "hashlib", "_hashlib", "subprocess", "multiprocessing", "socket", "tempfile", "random", "http",
    "email", "unittest", "zipfile", "difflib", "uuid", "sqlite3", "numpy.testing", "numpy.random", "numpy.ma",
    "numpy.f2py", "numpy.polynomial", "octavo.text.render_pool", "octavo.text.chat", "octavo.hub.huggingface",
    "octavo.serve", "octavo.engine_thread",
)  # fmt: skip


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


def own(loaded: set[str]) -> set[str]:
    return {name for name in loaded if name.partition(".")[0] == "octavo"}


def test_a_wrong_command_or_a_question_needs_no_numpy():
    for words in (["--version"], ["--help"], ["generate", "--help"], ["cache", "list"], ["models", "--help"]):
        code = f"from octavo.cli.main import main\ntry: main({words})\nexcept SystemExit: pass"
        loaded = loaded_after(code)
        assert loaded.isdisjoint({*NEVER, "numpy", "tokenizers", "octavo.llm_engine", "concurrent.futures"}), words
        assert len(own(loaded)) <= 16, sorted(own(loaded))


START = {
    "the command": (
        "from octavo.cli.main import main; "
        "main(['generate', 'the cat', '--model', sys.argv[1], '--device', 'cpu', '--max-tokens', '2', '--quiet'])",
        100,
    ),
    "LLM": (
        "from octavo import LLM, SamplingParams; "
        "LLM(sys.argv[1], device='cpu').generate('the cat', SamplingParams(max_tokens=2))",
        90,
    ),
}


@pytest.mark.parametrize("way", START)
def test_a_start_brings_no_more_than_its_first_token_needs(tiny_model: Path, tmp_path: Path, monkeypatch, way: str):
    """In a process of its own, the second one: what it takes from the load cache it need not make."""
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path))
    monkeypatch.setenv("OCTAVO_LOAD_CACHE", "100 MB")
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    time.sleep(2.1)  # of files that were written just now nothing is kept
    code, most = START[way]
    for _ in range(2):
        done = run_python(f"import json, sys; {code}; print(json.dumps(sorted(sys.modules)))", str(model))
        assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "octavo.models.packed_cache" in loaded
    assert loaded.isdisjoint({*NEVER, "concurrent.futures"}), sorted(loaded & {*NEVER, "concurrent.futures"})
    assert len(own(loaded)) <= most, sorted(own(loaded))


def test_importing_the_hub_imports_neither_library() -> None:
    code = "import sys, octavo.hub; print(*sorted({'huggingface_hub', 'rich', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert issubclass(ModelNotFoundError, OctavoError)
