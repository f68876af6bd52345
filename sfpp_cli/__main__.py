"""`sfpp` and `python -m sfpp_cli`."""

from sfpp_cli import interruption


def main() -> None:
    """Run a command; from here on an interrupt is one line."""
    with interruption.handled():
        from sfpp_cli.app import main as command

        try:
            command()
        except SystemExit as leaving:
            if interruption.seen() and isinstance(leaving.code, int):
                interruption.leave(leaving.code)
            raise


if __name__ == "__main__":
    main()
