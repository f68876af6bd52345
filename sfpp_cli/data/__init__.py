"""Prompt files, the toy world and stored trajectories."""
