"""What every test run shares: how Hypothesis draws."""

import os

from hypothesis import settings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and our forks do not go together
os.environ.setdefault("OCTAVO_LOAD_CACHE", "0")  # the tests of the load cache have one of their own
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core has a worker: PyTorch's threads would only wait

# No deadline: the machine is shared. The same examples every time, so that a red run is a red commit;
# HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
