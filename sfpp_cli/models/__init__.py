"""What is loaded and saved: model bundles, the streaming VAE, conversion of original checkpoints."""
