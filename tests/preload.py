"""What `tests.processes` loads before it forks; Python looks for no garbage meanwhile, a third of the time."""

import gc

gc.disable()

import matplotlib.figure  # noqa: E402, F401
import peft  # noqa: E402, F401
import pytest  # noqa: E402, F401
import ray.data  # noqa: E402
import ray.tune  # noqa: E402, F401

import dpl_ray.labeling.job  # noqa: E402
import dpl_ray.studies.self_training.job  # noqa: E402
import dpl_ray.studies.tuning.job  # noqa: E402
import dpl_ray.training.loop  # noqa: E402, F401

gc.freeze()
gc.enable()
