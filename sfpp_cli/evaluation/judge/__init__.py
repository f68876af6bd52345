"""Visual Stability by a video language model."""
