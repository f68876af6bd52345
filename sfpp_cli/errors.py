"""The exceptions that people are meant to read."""


class UserError(Exception):
    """Something the user can fix. One line: what is wrong, why, and what to do. The command line prints it and exits with 2."""


class Interrupted(Exception):
    """Ctrl-C in the middle of work that can go on later; the line says how. The command line prints it and exits with 130."""
