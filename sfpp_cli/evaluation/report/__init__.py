"""The evaluation as one page that needs nothing but itself, with its figures as PNG and JSON."""

from sfpp_cli.evaluation.report.page import write_report

__all__ = ["write_report"]
