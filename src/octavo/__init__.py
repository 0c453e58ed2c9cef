"""Octavo: an LLM inference engine.

The public names, each imported when it is first asked for, so that `import octavo` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.async_llm import AsyncLLM as AsyncLLM
    from octavo.config import CacheConfig as CacheConfig
    from octavo.config import EngineConfig as EngineConfig
    from octavo.config import ModelConfig as ModelConfig
    from octavo.config import ParallelConfig as ParallelConfig
    from octavo.config import SchedulerConfig as SchedulerConfig
    from octavo.engine.sequence import EngineRequest as EngineRequest
    from octavo.engine.sequence import Sequence as Sequence
    from octavo.engine.sequence import SequenceData as SequenceData
    from octavo.engine.sequence import SequenceStatus as SequenceStatus
    from octavo.errors import ConfigError as ConfigError
    from octavo.errors import ContextLengthError as ContextLengthError
    from octavo.errors import DoesNotFitError as DoesNotFitError
    from octavo.errors import EngineError as EngineError
    from octavo.errors import EngineStoppedError as EngineStoppedError
    from octavo.errors import ModelFormatError as ModelFormatError
    from octavo.errors import ModelNotFoundError as ModelNotFoundError
    from octavo.errors import NothingAllowedError as NothingAllowedError
    from octavo.errors import OctavoError as OctavoError
    from octavo.errors import QueueFullError as QueueFullError
    from octavo.errors import RequestError as RequestError
    from octavo.errors import UnsupportedError as UnsupportedError
    from octavo.llm import LLM as LLM
    from octavo.llm_engine import LLMEngine as LLMEngine
    from octavo.outputs import CompletionOutput as CompletionOutput
    from octavo.outputs import Logprob as Logprob
    from octavo.outputs import RequestMetrics as RequestMetrics
    from octavo.outputs import RequestOutput as RequestOutput
    from octavo.params import SamplingParams as SamplingParams
    from octavo.request import Request as Request
    from octavo.request import RequestStatus as RequestStatus
    from octavo.snapshot import EngineSnapshot as EngineSnapshot
    from octavo.snapshot import EngineStats as EngineStats

__version__ = "0.2.0"

_HOMES = {
    "octavo.llm": ("LLM",),
    "octavo.async_llm": ("AsyncLLM",),
    "octavo.llm_engine": ("LLMEngine",),
    "octavo.config": ("CacheConfig", "EngineConfig", "ModelConfig", "ParallelConfig", "SchedulerConfig"),
    "octavo.params": ("SamplingParams",),
    "octavo.outputs": ("CompletionOutput", "Logprob", "RequestMetrics", "RequestOutput"),
    "octavo.engine.sequence": ("EngineRequest", "Sequence", "SequenceData", "SequenceStatus"),
    "octavo.request": ("Request", "RequestStatus"),
    "octavo.snapshot": ("EngineSnapshot", "EngineStats"),
    "octavo.errors": (
        "ConfigError", "ContextLengthError", "DoesNotFitError", "EngineError", "EngineStoppedError",
        "ModelFormatError", "ModelNotFoundError", "NothingAllowedError", "OctavoError", "QueueFullError",
        "RequestError", "UnsupportedError",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    from importlib import import_module

    value = vars(import_module(_HOME_OF[name]))[name]
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
