"""sfpp: minute-long video from a causal few-step student (Self-Forcing++, arXiv 2510.02283)."""

__version__ = "0.1.0"
