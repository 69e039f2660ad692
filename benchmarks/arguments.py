"""What the benchmarks' options must hold, said in one line where they do not."""

import os
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def clone_with(file: str) -> Callable[[str], Path]:
    """A folder that has this file."""

    def path(text: str) -> Path:
        if not (Path(text) / file).is_file():
            raise ArgumentTypeError(f"must be a clone of the official code, with {file} in it; got {text}")
        return Path(text).resolve()

    return path


@contextmanager
def refused(parser: ArgumentParser) -> Iterator[None]:
    """What the library says of options that do not go together, as the parser would say it."""
    try:
        yield
    except (ValueError, ArgumentTypeError) as error:
        parser.error(str(error))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return int(text)


def threads(text: str) -> int:
    most = os.cpu_count() or 1
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ArgumentTypeError(f"must be a whole number from 1 to the {most} cores there are; got {text}")
    return int(text)


def rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 20:
        raise ArgumentTypeError(f"an interval needs at least 20 rounds; got {text}")
    return int(text)


def device(text: str) -> str:
    if text not in ("cpu", "cuda") or (text == "cuda" and not torch.cuda.is_available()):
        raise ArgumentTypeError(f"must be cpu, or cuda where there is a GPU; got {text}")
    return text
