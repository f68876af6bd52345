"""sfpp: minute-long video from a causal few-step student (Self-Forcing++, arXiv 2510.02283)."""

import os

# OpenMP's threads spin while they wait, which starves whoever shares the cores: a busy neighbour makes every small operation
# many times slower. It reads this when torch is loaded, hence here; a user's own choice stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
