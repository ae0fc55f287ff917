"""From the command line to a step, and from a user's mistake to one sentence."""

import signal
import sys
from collections.abc import Callable

import tyro

from config import CONFIG, Config, UserError


def run(step: Callable[[Config], object], defaults: Config = CONFIG) -> None:
    """Call `step` with the settings of `defaults`, changed as the command line says.

    `defaults` is CONFIG, or an instance of a subclass with the arguments that one script adds. A
    mistake that the user can mend ends in one sentence on standard error and exit code 1.
    """
    summary = sys.modules["__main__"].__doc__.split("\n")[0]
    try:
        kind = type(defaults)
        cfg = tyro.cli(kind, default=defaults, description=summary, use_underscores=True)
    except SystemExit as stop:
        sys.exit(1 if stop.code else 0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as schedulers send it: like Ctrl-C
    try:
        step(cfg)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        known = [str(part) for part in (error.strerror, error.filename) if part]
        sys.exit(f"error: {': '.join(known) or error}")
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
