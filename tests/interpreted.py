"""Code in Triton's interpreter: TRITON_INTERPRET is read where triton is imported, so it runs in another process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(code: str, *words: str, **environment: str) -> list[str]:
    """The lines it prints; its arguments are ``words``."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def interpret(code: str, *words: str) -> list[str]:
    return run(code, *words, TRITON_INTERPRET="1")
