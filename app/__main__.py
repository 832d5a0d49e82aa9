"""`zoetrope` and `python -m app`: parses the command line and runs one command.

Commands import heavy modules only when they run.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from pipelines.core.errors import ZoetropeError

from .cli import analyse, bench, doctor, live, models, plans, render


def build_parser() -> argparse.ArgumentParser:
    """Return the parser, with one subcommand for each command."""
    parser = argparse.ArgumentParser(prog="zoetrope", description="Live generated video.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (live, render, models, plans, bench, analyse, doctor):
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 success, 1 a ZoetropeError, 130 interrupted.

    arguments: None: those of the process, which runs nothing else.
    """
    options = build_parser().parse_args(arguments)
    options.own_process = arguments is None
    if options.own_process:
        warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a picture is said in our errors
    try:
        status: int = options.run(options)
    except ZoetropeError as error:
        sys.stderr.write(f"zoetrope: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("zoetrope: interrupted\n")
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
