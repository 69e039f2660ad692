"""Every test runs on one thread and without a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, and inherited by subprocesses

os.environ["OMP_NUM_THREADS"] = "1"  # likewise

import torch

torch.set_num_threads(1)
