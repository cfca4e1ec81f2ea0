"""OpenCV, imported here alone, so that one place says what to install."""

from stma.errors import InputError

try:
    import cv2
except ImportError as error:  # not installed, or a server without libGL
    raise InputError(
        f"OpenCV cannot be imported ({error}): pip uninstall -y opencv-python; "
        "pip install opencv-python-headless"
    ) from error

__all__ = ["cv2"]
