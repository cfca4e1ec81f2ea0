"""What serves a run: devices, processes, files, settings."""
