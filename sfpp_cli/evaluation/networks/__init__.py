"""Metrics that need a network: CLIP, DINOv2, RAFT."""
