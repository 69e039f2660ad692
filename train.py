"""Trains the embedded models on moving shapes: ``python train.py model=mini_mean``."""

import sys

from tokred.training import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
