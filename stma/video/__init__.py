"""A person's own video: reading it, segmenting it, writing the results."""
