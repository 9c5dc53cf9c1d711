"""The errors a user can meet: each message names the rule, the value and the remedy."""


class FlowgradError(Exception):
    """A job that failed for a reason the user can act on (exit code 1)."""


class UsageError(FlowgradError):
    """A call that is wrong as written: an unknown name, a value out of range (exit code 2)."""
