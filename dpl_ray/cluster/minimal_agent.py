"""Ray's agent of a node as where its dashboard is not installed: `python minimal_agent.py .../ray/dashboard/agent.py`.

Ray does not start without this agent. Where there is no dashboard it would look for one every second, write to its log
that there is none, and measure all processes for it.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    own = str(Path(__file__).parent)
    if sys.path[0] == own:  # before an import: its files have the names of other modules
        sys.path[0] = str(Path(sys.argv[0]).parent)
    from ray._private import utils

    utils.get_dashboard_dependency_error = lambda: ImportError("none is wanted")
    runpy.run_path(sys.argv[0], run_name="__main__")
