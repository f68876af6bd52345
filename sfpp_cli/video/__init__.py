"""ffmpeg in and out, contact sheets."""
