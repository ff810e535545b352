"""One thread for every test: results do not depend on the machine, and parallel workers do not fight for cores."""

import torch

torch.set_num_threads(1)
