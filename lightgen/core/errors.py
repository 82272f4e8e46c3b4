"""The one error that a user can cause and mend."""


class UserError(ValueError):
    """Bad usage or bad input: one line that says what, got, and allowed; the command line exits with 2."""
