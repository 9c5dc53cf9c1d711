"""What a command says when it fails: one or two lines and an exit code, never a traceback."""

import errno
import os
from typing import Any

import typer
from typer.core import TyperGroup

from directions.commands.terminal import escaped, put
from flowgrad.errors import FlowgradError, UsageError, is_out_of_memory

WRONG_CALL, FAILED, INTERRUPTED = 2, 1, 130
RESUMABLE = ("train-direction", "train-flow", "train-autoencoder", "train-guide", "sampler")


class Commands(TyperGroup):
    """The group of all commands: it turns every error into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            again = "; run the same command again to resume" if ctx.invoked_subcommand in RESUMABLE else ""
            raise failed(f"interrupted{again}", INTERRUPTED) from None
        except BrokenPipeError:  # what reads our answer has seen enough: typer ends quietly
            raise
        except Exception as error:
            if os.environ.get("FLOWGRAD_DEBUG") == "1" or type(error).__module__.startswith(("typer", "click")):
                raise
            raise failed(explain(error), WRONG_CALL if isinstance(error, UsageError) else FAILED) from None


def failed(message: str, code: int = FAILED) -> typer.Exit:
    """Print an error message; the exception that ends the command with an exit code."""
    put(f"{typer.style('error:', fg='red', bold=True)} {escaped(message)}", err=True)
    return typer.Exit(code)


def explain(error: Exception) -> str:
    """What went wrong and what to do about it."""
    if isinstance(error, FlowgradError):
        return str(error)
    if is_out_of_memory(error):
        return (
            "there is not enough memory. Give fewer photos, lower --augmentations, --count, or `batch` in the model's "
            "configuration, set `checkpointing: true` there, or use --precision bf16 or --device cpu."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full: {error.filename or 'a file'} was not written. Free some space, then run it again."
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}. Check the name and its permissions."
    return f"{type(error).__name__}: {error}. This is a bug; FLOWGRAD_DEBUG=1 shows where."
