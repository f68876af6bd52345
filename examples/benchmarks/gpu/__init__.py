"""The sections of `gpu_campaign.py`, and what they measure with."""
