"""The two ends of the noise scale. Importing this loads no torch."""

TRAIN_STEPS = 1000
"""The timestep of pure noise. A timestep is 1000 sigma; only networks and recipes speak in timesteps."""

CLEAN = 0.0
"""The timestep of clean latents: what the context pass tells the network, and what step 0 is warped to."""
