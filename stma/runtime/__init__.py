"""What every run needs: devices, processes, files, settings."""
