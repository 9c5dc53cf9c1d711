"""The errors a user can meet: each message names the rule, the value and the remedy."""

from collections.abc import Sequence


class FlowgradError(Exception):
    """A job that failed for a reason the user can act on (exit code 1)."""


class UsageError(FlowgradError):
    """A call that is wrong as written: an unknown name, a value out of range (exit code 2)."""


def all_of(errors: Sequence[FlowgradError], what: str) -> FlowgradError:
    """One error for several, of the same kind as the first: `what` they have in common, then each. One stays itself."""
    if len(errors) == 1:
        return errors[0]
    return type(errors[0])(f"{what}: {'; '.join(str(error).rstrip('.') for error in errors)}.")


def reason(error: BaseException) -> str:
    """What an error says, as one line of 160 characters at most; its type if it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a device's or the machine's lack of memory, in Python's or torch's words."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
