"""Compares token-reduction methods: ``python sweep.py "methods=[vid_tldr,tome]"``; ``--help`` names the axes."""

import sys

from tokred.sweeps.cli import sweep

if __name__ == "__main__":
    sys.exit(sweep(sys.argv[1:]))
