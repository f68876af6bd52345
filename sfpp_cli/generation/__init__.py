"""From wishes to a video file: requests, the generator, batches."""
