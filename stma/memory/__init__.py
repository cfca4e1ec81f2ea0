"""The two memories of a video."""
