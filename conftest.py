"""What every test run shares: which `octavo` is tested, and how Hypothesis draws.

The tests are for the installed package, native part included. `python -m pytest` puts the checkout's root first in
sys.path, where `octavo` is source alone, so the root is taken out here, before anything imports `octavo`. (With an
editable install nothing changes: its own import hook leads to the source and to the built part.)
"""

import os
import sys
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
os.environ["PYTHONSAFEPATH"] = "1"  # the same for the processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and our forks do not go together

# No deadline: the machine is shared. The same examples every time, so that a red run is a red commit;
# HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
