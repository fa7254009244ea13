"""The `sea-lens` command: each command is a few library calls. A mistake is one line on stderr and exit code 2.

Under `--json` it is the `error` of the one object on stdout, too.
"""

from __future__ import annotations

import sys
import warnings

from typer.exceptions import Abort, Exit, TyperException

from sea_lens.cli import conditions, evaluating, exporting, fitting, inspecting, looking, showing, studying, using
from sea_lens.cli.app import app
from sea_lens.cli.output import failures_as_json, harmless
from sea_lens.errors import SeaLensWarning
from sea_lens.wording import speaking

__all__ = [
    "app",
    "conditions",
    "evaluating",
    "exporting",
    "fitting",
    "inspecting",
    "looking",
    "main",
    "showing",
    "studying",
    "using",
]


def main() -> None:
    """Runs the command line."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", SeaLensWarning)
    with failures_as_json(sys.argv[1:]) as as_json:
        code, failure = _run()
        if failure is not None:
            failure = harmless(" ".join(failure.split()))
            as_json(failure)
            print(f"error: {failure}", file=sys.stderr)
    sys.exit(code)


def _run() -> tuple[int, str | None]:
    """The exit code, and what went wrong."""
    try:
        with speaking(lambda name, value: None):  # until a command is known, and its options with it
            code = app()(prog_name="sea-lens", standalone_mode=False)
        return code if isinstance(code, int) else 0, None
    except TyperException as error:
        return 2, error.format_message()
    except Exit as error:
        return error.exit_code, None
    except (Abort, KeyboardInterrupt):
        return 2, "stopped"
    except (ValueError, RuntimeError, OSError) as error:
        return 2, str(error)
    except Exception as error:  # from a library below: still one line
        return 2, f"{type(error).__name__}: {error}"


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print("warning: " + harmless(" ".join(str(message).split())), file=sys.stderr)
