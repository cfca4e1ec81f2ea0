"""A local page for segmenting a video by drawing on it."""
