"""What TensorBoard shows of a run."""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from stma.data.pictures import contact_sheet, draw_overlay
from stma.model.probing import Watched, mean_look, mean_shares, with_streams
from stma.model.stma import STMA
from stma.structures import ClipBatch, Prediction

log = logging.getLogger(__name__)


class Board:
    """TensorBoard's files of a stage. If they cannot be written (for example, the disk is full),
    training continues without them, with a warning.

    Args:
        folder: None shows nothing.
        first: iteration; what an earlier start wrote about later ones is not shown.
    """

    def __init__(self, folder: Path | None, first: int = 0) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None
        self._hook = threading.excepthook
        if folder is not None:
            self._try(lambda: self._open(first))

    def _open(self, first: int) -> None:
        self._writer = SummaryWriter(str(self.folder), purge_step=first)
        threading.excepthook = self._told_by_us

    def _told_by_us(self, failure: threading.ExceptHookArgs) -> None:
        """A failure in TensorBoard's thread is raised again, and so reported, by the next call."""
        theirs = type(failure.thread).__module__.startswith("tensorboard")
        if not (theirs and isinstance(failure.exc_value, OSError)):
            self._hook(failure)

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        if (writer := self._writer) is not None:

            def write() -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, iteration)

            self._try(write)

    def attention(self, model: STMA, clip: ClipBatch, iteration: int) -> None:
        """Show where the test stream's attention goes and how far it spreads, and how much of the
        references' goes to the objects; in evaluation mode, so that it has no side effects."""
        if not self.is_open:
            return
        model.eval()
        watched = Watched(model.streams)
        with torch.no_grad(), with_streams(model, watched):
            model(clip)
        scalars: dict[str, float] = {}
        if (look := mean_look(watched.looks)) is not None:
            for block, row in enumerate(look.shares.tolist()):
                for name, share in zip(look.groups, row, strict=True):
                    scalars[f"attention/block{block}_{name}"] = share
            for block, spread in enumerate(look.spreads.tolist()):
                scalars[f"attention_spread/block{block}"] = spread
        if (received := mean_shares(watched.object_shares)) is not None:
            for block, share in enumerate(received.tolist()):
                scalars[f"attention_of_references/block{block}_objects"] = share
        self.scalars(scalars, iteration)

    def picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        """Show a picture, ``(H, W, 3)`` uint8."""
        if (writer := self._writer) is not None:
            self._try(lambda: writer.add_image(name, picture, iteration, dataformats="HWC"))

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            self._writer = None
            log.warning(
                "%s: cannot be written (%s); training continues without TensorBoard",
                self.folder,
                error,
            )

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._try(self._writer.close)
        threading.excepthook = self._hook


def prediction_picture(clip: ClipBatch, prediction: Prediction) -> np.ndarray:
    """The first clip of a batch with its ground truth and, from frame 1 on, its prediction.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    frames = clip.frames[0].permute(0, 2, 3, 1).cpu().numpy()
    truth = clip.masks[0].cpu().numpy()
    predicted = prediction.logits[0].argmax(dim=1).to(torch.uint8).cpu().numpy()
    return contact_sheet(
        [
            ("truth", [draw_overlay(f, m) for f, m in zip(frames, truth, strict=True)]),
            (
                "frame 0, prediction",
                [
                    frames[0],
                    *(draw_overlay(f, m) for f, m in zip(frames[1:], predicted, strict=True)),
                ],
            ),
        ]
    )
