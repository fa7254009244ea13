"""The `sea-lens` command: each command is a few library calls. A mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import sys
import warnings

from typer.exceptions import Abort, Exit, TyperException

from sea_lens.cli import conditions, evaluating, exporting, fitting, inspecting, looking, showing, studying, using
from sea_lens.cli.app import app
from sea_lens.cli.output import harmless
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
    try:
        with speaking(lambda name, value: None):  # until a command is known, and its options with it
            code = app()(prog_name="sea-lens", standalone_mode=False)
    except TyperException as error:
        code = _fail(error.format_message())
    except Exit as error:
        code = error.exit_code
    except (Abort, KeyboardInterrupt):
        code = _fail("stopped")
    except (ValueError, RuntimeError, OSError) as error:
        code = _fail(str(error))
    except Exception as error:  # from a library below: still one line
        code = _fail(f"{type(error).__name__}: {error}")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> int:
    print("error: " + harmless(" ".join(message.split())), file=sys.stderr)
    return 2


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print("warning: " + harmless(" ".join(str(message).split())), file=sys.stderr)
