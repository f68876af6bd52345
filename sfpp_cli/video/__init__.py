"""Videos in and out of files, contact sheets. Memory does not grow with the length of a video."""

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""RGB pictures: [T, H, W, 3], or a single one [H, W, 3]."""
