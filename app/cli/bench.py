"""`zoetrope bench`: measures how fast a model runs on this machine, and prints a measurement card for each backend.

Parses the command line and prints; app/measure/ does the rest, in a process of its own for each backend.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app.worker.threads import limit_spinning
from pipelines.core.errors import InputError, ZoetropeError

from .options import add_control_options, add_engine_options, control_from_options, engine_options

if TYPE_CHECKING:
    from app.measure.card import Card
    from app.measure.live import ModelRequest

_MAX_SECONDS = 3600.0
_EXAMPLES = """examples:
  zoetrope bench                              (the bundled image model, about a minute)
  zoetrope bench mini-video --all             (every backend that can run here, one after the other)
  zoetrope bench stabilityai/sd-turbo --steps 1 --size 512x512 --json
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A backend of the table: whether it can run the model here, and what it is or why it cannot."""

    name: str
    runs: bool
    text: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `bench` to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="measure how fast a model runs on this machine",
        description="Measure a model on this machine: frames a second, evenness, latency, memory, energy. An image "
        "model redraws the bundled camera clip, a video model works from its prompt alone, as fast as they can.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", default="mini-image", metavar="MODEL", help="as for --model of `live`")
    parser.add_argument("--seconds", default="30", metavar="N", help="measured time of each backend (default 30)")
    parser.add_argument("--all", action="store_true", help="measure every backend that can run here, in turn")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads of the model (default: all)")
    add_engine_options(parser, with_model=False)
    add_control_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 1 if nothing could be measured. Raises ZoetropeError."""
    from app.measure.live import ModelRequest

    seconds = _seconds(options.seconds)
    request = ModelRequest(
        model=options.model,
        options=engine_options(options),
        control=control_from_options(options),
        threads=options.threads,
    )
    if options.all and request.options.backend != "auto":
        raise InputError("--all and --backend were both given.", "Give one.")
    limit_spinning()
    table = candidates(request)
    names = [row.name for row in table if row.runs] if options.all and table else [request.options.backend]
    cards: list[Card] = []
    failed: dict[str, str] = {}
    for name in names:
        try:
            cards.append(measure(replace(request, options=request.options.changed({"backend": name})), seconds))
        except ZoetropeError as error:
            if len(names) == 1:
                raise
            failed[name] = str(error)
        else:
            if not options.json:
                _print(cards[-1].as_text() + "\n")
    _print(report_json(cards, failed, table) if options.json else report_text(cards, failed, table))
    return 0 if cards else 1


def measure(request: ModelRequest, seconds: float) -> Card:
    """Measure one backend in a process of its own. Raises ZoetropeError: what failed there, and the remedy."""
    from functools import partial

    from app.measure.apart import Apart
    from app.measure.live import live_model
    from app.measure.result import card_of

    with Apart(partial(live_model, request), _say) as subject:
        subject.about()
        _say(f"measuring for {seconds:g} s…")
        return card_of(subject, [subject.measure(seconds)], f"zoetrope {shlex.join(sys.argv[1:])}")


def candidates(request: ModelRequest) -> list[Candidate]:
    """Every backend of the table, for this model and device; none for a model without networks. Raises ModelError."""
    from pipelines.backends.base import KINDS
    from pipelines.backends.table import BACKENDS, refusal_of
    from pipelines.files.precision import choose_device
    from pipelines.kinds import kind_of

    kind = kind_of(request.model).name
    if kind not in KINDS:
        return []
    device = choose_device(request.options.device)
    refusals = {name: refusal_of(backend, kind, device) for name, backend in BACKENDS.items()}
    return [
        Candidate(
            name=name,
            runs=refusal is None,
            text=BACKENDS[name].purpose if refusal is None else f"{refusal.message} {refusal.remedy}".rstrip(),
        )
        for name, refusal in refusals.items()
    ]


def report_text(cards: list[Card], failed: Mapping[str, str], table: list[Candidate]) -> str:
    """What follows the cards: a comparison if there are several, and the table of backends."""
    lines = []
    if len(cards) > 1:
        fastest = max(card.figures.fps for card in cards)
        for card in cards:
            figures = card.figures
            rate, share = f"{figures.fps:8.1f} frames a second", f"{100 * figures.fps / fastest:5.0f} %"
            lines.append(f"{card.setup.backend:<22}{rate}{share}   p99 {figures.gap_ms_p99:.1f} ms")
        lines.append("")
    lines += [f"{name}: failed: {why}" for name, why in failed.items()]
    if table:
        lines.append("Backends of this model here (--backend NAME, or --all):")
    lines += [f"  {'ok' if row.runs else '-':<4}{row.name:<22}{row.text}" for row in table]
    return "\n".join(lines)


def report_json(cards: list[Card], failed: Mapping[str, str], table: list[Candidate]) -> str:
    """The same as one JSON object."""
    backends = [{"name": row.name, "runs": row.runs, "text": row.text} for row in table]
    return json.dumps({"cards": [card.as_json() for card in cards], "failed": dict(failed), "backends": backends})


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _MAX_SECONDS:
        raise InputError(f"seconds cannot be {text!r}.", f"Give a number above 0, up to {_MAX_SECONDS:g}.")
    return value


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
