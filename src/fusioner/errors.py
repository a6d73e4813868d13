"""The exception for all errors that a user can cause and mend."""

from collections.abc import Mapping
from typing import Any


class FusionerError(Exception):
    """Bad input, explained in one sentence; the command line prints it without a traceback and exits with 2."""


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the first setting that differs, as `lr (0.1 then, 0.2 now)`, or ""; nested settings are compared by name.

    A setting that one side lacks has its default there.
    """
    for name in {**now, **before}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if found := first_difference(old, new):
                return found
        elif old != new:
            then, today = ("the default" if value is None else value for value in (old, new))
            return name.replace("_", " ") + (f" ({then} then, {today} now)" if len(f"{then}{today}") < 60 else "")
    return ""
