"""`zoetrope plans`: builds, lists, verifies, explains, removes and checks compiled plans of models.

Shows what pipelines/plans/ does, and nothing more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.errors import InputError

from .options import add_engine_options, engine_options

if TYPE_CHECKING:
    from pipelines.plans.commands import PlanRequest, Plans, Removed

_MOST_SLOTS = 64


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plans` and its actions to the command line."""
    text = "build, list, verify, explain, remove and check compiled plans"
    parser = subparsers.add_parser("plans", help=text, description=f"{text.capitalize()}; see docs/plans.md.")
    parser.set_defaults(run=run, action="list", folder=None)
    actions = parser.add_subparsers(metavar="ACTION")
    for name, help_text in _HELP.items():
        action = actions.add_parser(name, help=help_text, description=f"{help_text.capitalize()}.")
        action.set_defaults(action=name)
        action.add_argument("--folder", type=Path, help="where plans are kept (default: ZOETROPE_PLANS, or the cache)")
        if name in ("build", "why", "check"):
            action.add_argument("name", metavar="MODEL", nargs="?", help="as --model")
            add_engine_options(action)
            action.add_argument(
                "--slots", default="1,2,3,4", metavar="N,N", help="batch sizes of an image model (default 1,2,3,4)"
            )
            action.add_argument(
                "--refit", action="store_true", help="build plans whose weights can be changed: on the card's machine"
            )
        if name == "prune":
            action.add_argument("--keep-days", type=float, metavar="N", help="remove plans not used for N days")
            action.add_argument("--max-gb", type=float, metavar="N", help="then the longest unused, down to N GB")
            action.add_argument("--unusable", action="store_true", help="remove plans that cannot run on this machine")


def run(options: argparse.Namespace) -> int:
    """Run the requested action. Returns the exit status."""
    from pipelines.plans.commands import Plans

    return _ACTIONS[options.action](Plans(options.folder, notice=_progress), options)


def _build(plans: Plans, options: argparse.Namespace) -> int:
    for plan in plans.build(_request(options), _progress):
        state = f"built in {plan.seconds:.1f} s" if plan.seconds else "was stored"
        _say(f"{plan.part}: {plan.inputs}: {_size(plan.size_bytes)}, {state}")
    _say(f"Plans are in {plans.store.root}")
    return 0


def _list(plans: Plans, _: argparse.Namespace) -> int:
    for entry in plans.entries():
        key, used = entry.key, time.strftime("%Y-%m-%d", time.localtime(entry.used))
        _say(f"{key.recipe}  {key.model}  {key.part}  {_size(entry.size_bytes)}  used {used}  {key.device}")
        _say(f"    {key.inputs}")
    _say(f"{len(plans.entries())} plans in {plans.store.root}")
    return 0


def _verify(plans: Plans, _: argparse.Namespace) -> int:
    broken = plans.verify()
    _tell_removed("moved aside", broken)
    _say(f"{len(plans.entries())} plans are complete, {len(broken)} were broken.")
    return 1 if broken else 0


def _why(plans: Plans, options: argparse.Namespace) -> int:
    for plan, reason in plans.why(_request(options)):
        _say(f"{plan}\n  " + reason.replace("\n", "\n  "))
    return 0


def _prune(plans: Plans, options: argparse.Namespace) -> int:
    most = None if options.max_gb is None else int(options.max_gb * 1e9)
    removed = plans.prune(keep_days=options.keep_days, max_bytes=most, unusable=options.unusable)
    _tell_removed("removed", removed)
    _say(f"{_size(sum(entry.size_bytes for entry in removed))} are free again.")
    return 0


def _check(plans: Plans, options: argparse.Namespace) -> int:
    from pipelines.plans.check import check_plans

    passed = True
    for result in check_plans(plans, _request(options), _progress):
        passed = passed and result.passed
        verdict = "ok" if result.passed else f"FAILED: at least {result.limit_db:.0f} dB are needed"
        _say(f"{result.part}: {result.inputs}")
        _say(
            f"    {result.signal_db:.1f} dB of PyTorch's result, {verdict}; {result.plan_ms:.2f} ms, PyTorch eager "
            f"{result.eager_ms:.2f} ms: {result.eager_ms / result.plan_ms:.2f} times as fast"
        )
    return 0 if passed else 1


_HELP: Mapping[str, str] = {
    "build": "build the plans of a model ahead of its first stream",
    "list": "list the stored plans (the default)",
    "verify": "read all stored plans and move broken ones aside",
    "why": "say which plans of a model have to be built, and why",
    "prune": "remove what broken plans and killed builds left, and plans by age, size or use",
    "check": "run a model's plans on this machine beside PyTorch: do they compute the same, and how fast",
}
_ACTIONS: Mapping[str, Callable[[Plans, argparse.Namespace], int]] = {
    "build": _build,
    "list": _list,
    "verify": _verify,
    "why": _why,
    "prune": _prune,
    "check": _check,
}


def _request(options: argparse.Namespace) -> PlanRequest:
    from pipelines.plans.commands import PlanRequest

    options.model = options.name or options.model
    return PlanRequest(
        model=options.model,
        backend=options.backend,
        options=engine_options(options),
        slots=_slots(options.slots),
        refit=options.refit,
    )


def _slots(text: str) -> tuple[int, ...]:
    """'1,2,4' -> (1, 2, 4). Raises InputError."""
    try:
        slots = tuple(int(part) for part in text.split(","))
    except ValueError:
        slots = ()
    if not slots or not all(1 <= count <= _MOST_SLOTS for count in slots):
        raise InputError(f"--slots cannot be {text!r}.", f"Give numbers from 1 to {_MOST_SLOTS}, for example 1,2,4.")
    return slots


def _tell_removed(what: str, entries: Sequence[Removed]) -> None:
    for entry in entries:
        _say(f"{what}: {entry.name}, {_size(entry.size_bytes)}: {entry.reason}")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _progress(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
