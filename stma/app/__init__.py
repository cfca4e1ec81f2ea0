"""A page on this machine, where one segments a video by drawing on it."""
