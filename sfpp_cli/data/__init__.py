"""Prompt files, procedural worlds, and stores of latents, trajectories and embeddings."""
