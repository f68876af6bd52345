"""The procedural world of the embedded model, and a reader of its videos."""
