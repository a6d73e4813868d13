"""The exception for all errors that a user can cause and mend."""


class FusionerError(Exception):
    """Bad input, explained in one sentence; the command line prints it without a traceback and exits with 2."""
