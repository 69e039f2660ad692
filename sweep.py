"""Compares token-reduction methods: ``python sweep.py "methods=[vid_tldr,tome]"``; ``--help`` names the axes."""

import sys

from tokred.sweeps.cli import watched_sweep

if __name__ == "__main__":
    sys.exit(watched_sweep(sys.argv[1:]))
