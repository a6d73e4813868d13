"""The one exception a user meets: a sentence that says what is wrong, where, and how to mend it."""


class FusionerError(Exception):
    """Bad input, said in one sentence; the command line prints it without a traceback and exits with 2."""
