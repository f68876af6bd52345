"""The one exception that people are meant to read."""


class UserError(Exception):
    """Something the user can fix. One line: what is wrong, why, and what to do. The command line prints it and exits with 2."""
