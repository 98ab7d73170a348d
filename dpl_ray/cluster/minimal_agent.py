"""Ray's agent of a node as where its dashboard is not installed: `python minimal_agent.py .../ray/dashboard/agent.py`.

Ray does not start without this agent. Where there is no dashboard it would look for one every second, write to its log
that there is none, and measure all processes for it, which takes several percent of a core.
"""

import runpy
import sys
from pathlib import Path

from ray._private import utils

if __name__ == "__main__":
    utils.get_dashboard_dependency_error = lambda: ImportError("none is wanted")
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)  # as Python has it where it runs that script
    runpy.run_path(sys.argv[0], run_name="__main__")
