"""One thread for all tests: toy sizes gain nothing from more, and on busy cores more are many times slower."""

import torch

torch.set_num_threads(1)
