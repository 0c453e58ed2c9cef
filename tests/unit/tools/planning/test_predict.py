"""Which contexts are predicted, and what fits."""

from dataclasses import replace

from octavo.engine.memory_plan import MemoryPlan
from octavo.engine.scheduler import Limits
from octavo.tools.planning.predict import contexts_up_to, fit_of


def test_what_fits_as_it_is_and_with_larger_settings():
    memory = MemoryPlan((), workspace_bytes=0, block_bytes=10, num_blocks=50, available=1000)
    limits = Limits(512, 16, 2048)
    assert [fit_of(needed, 16, memory, limits) for needed in (50, 51, 100, 101)] == [
        "yes", "with larger settings", "with larger settings", "no",
    ]  # fmt: skip
    assert fit_of(50, 17, memory, limits) == "with larger settings"
    assert fit_of(50, 16, replace(memory, num_blocks=101), limits) == "with larger settings"


def test_contexts_double_up_to_the_longest():
    assert contexts_up_to(8192) == [1024, 2048, 4096, 8192]
    assert contexts_up_to(5000) == [1024, 2048, 4096, 5000]
    assert contexts_up_to(600) == [600]
