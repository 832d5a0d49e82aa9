"""`zoetrope` and `python -m app`: parses the command line and hands over to one door.

Heavy imports stay inside the doors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipelines.core.errors import ZoetropeError

from .cli import doctor, live, models, render


def build_parser() -> argparse.ArgumentParser:
    """The command line: one sub-command for each door."""
    parser = argparse.ArgumentParser(prog="zoetrope", description="Live generated video.")
    doors = parser.add_subparsers(dest="door", required=True, metavar="DOOR")
    for door in (live, render, models, doctor):
        door.add_parser(doors)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a door; returns the exit status (0 done, 1 a clear error, 130 interrupted)."""
    options = build_parser().parse_args(arguments)
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
