"""Thin commands: parse, call, report."""
