"""What an application imports: a video, frame by frame."""
