"""The command line: ``coxmoe``, or ``python -m coxcompile``."""

import sys
from collections.abc import Sequence

import typer

from coxcompile.commands.calibrate import calibrate
from coxcompile.commands.doctor import doctor
from coxcompile.commands.models import models
from coxcompile.commands.plan import plan
from coxcompile.commands.stratify import InputsError, stratify
from coxcompile.commands.systems import systems
from coxcompile.commands.tune import TuningError, tune
from coxcompile.machine import DetectionError
from coxcompile.naming import UnknownNameError
from coxcompile.planner.records import RecordError

REFUSALS = (DetectionError, InputsError, RecordError, TuningError, UnknownNameError)
"""Errors that are answers to what the user asked for: shown as a line, without a traceback."""

app = typer.Typer(
    name="coxmoe",
    help="Plan and measure Mixture-of-Experts inference on one GPU and a big CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (plan, models, systems, calibrate, stratify, tune, doctor):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``arguments`` (None: the command line's) and exit: 0, or 2 for what cannot be done."""
    try:
        app(args=arguments)
    except REFUSALS as error:
        print(f"coxmoe: {error}", file=sys.stderr)
        sys.exit(2)
