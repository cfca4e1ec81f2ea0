"""J and F of masks, as the DAVIS and LVOS evaluators report them; per frame by vos-benchmark.

An object counts in the frames strictly between its first, which gives it, and its last. For DAVIS
these are all frames of the clip but the first and the last; LVOS states its ranges; elsewhere an
object's first frame is the one where the ground truth first shows it, and its last is the clip's.
"""

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from vos_benchmark.evaluator import Evaluator

from stma.data.masks import count_ids, fit_mask, read_mask
from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip
from stma.runtime.opencv import cv2
from stma.runtime.workers import worker_map

BOUNDARY = 0.008
RECALL_THRESHOLD = 0.5
DECAY_BINS = 4
FRAMES_OF_A_PROCESS = 200  # at least


@dataclass(frozen=True, eq=False)
class Measure:
    """J or F of one object over time.

    Attributes:
        values: ``(T,)`` in [0, 1], of the frames that count.
    """

    values: np.ndarray

    @property
    def mean(self) -> float:
        """In percent."""
        return 100 * float(self.values.mean())

    @property
    def recall(self) -> float:
        """Percentage of frames above one half."""
        return 100 * float((self.values > RECALL_THRESHOLD).mean())

    @property
    def decay(self) -> float:
        """The loss from the first quarter of the frames to the last, in percentage points.

        The quarters share their border frames, as in the DAVIS evaluator (which counts in 8 bits
        and so is wrong for clips of more than 256 frames).
        """
        borders = np.round(np.linspace(1, len(self.values), DECAY_BINS + 1) + 1e-10).astype(int) - 1
        first = self.values[borders[0] : borders[1] + 1]
        last = self.values[borders[-2] : borders[-1] + 1]
        return 100 * float(first.mean() - last.mean())


@dataclass(frozen=True, eq=False)
class ObjectScore:
    """One object of one clip.

    Attributes:
        stems: of the frames that count.
    """

    clip: str
    object_id: int
    stems: list[str]
    j: Measure
    f: Measure

    @property
    def v(self) -> float:
        """LVOS's V: how far J&F deviates from its mean over time, in percentage points. The
        variance is rounded to four digits, as in the released evaluator."""
        return 100 * float(round(np.var((self.j.values + self.f.values) / 2), 4)) ** 0.5


class ClipScorer:
    """Scores the masks of one clip, frame by frame, leaving out the first and the last.

    Args:
        clip: a mask for every frame.

    Raises:
        InputError: the stated ranges of frames do not fit the clip.
    """

    def __init__(self, clip: EvalClip) -> None:
        self.clip = clip
        self._stems = [path.stem for path in clip.video.frames]
        self._evaluator = Evaluator(name=clip.name)
        self._first_frame: dict[int, int] = {}
        self._stated: dict[int, list[int]] = {}
        if clip.ranges:
            self._state_ranges()
        else:
            truth, _ = clip.read_mask(self._stems[0])
            # DAVIS counts every ID up to the largest, present or not.
            all_first = clip.rules.objects == "first_mask"
            self._meet(0, np.arange(int(truth.max()) + 1) if all_first else np.unique(truth))

    @property
    def indices(self) -> range:
        """Stems of the frames to feed, in this order."""
        return range(1, len(self._stems) - 1)

    def feed(self, index: int, result: np.ndarray, truth: np.ndarray) -> None:
        """Compare two masks of a frame, both ``(H, W)`` uint8.

        Raises:
            InputError: the result holds a larger ID than the first mask, which DAVIS refuses.
        """
        if not self.clip.ranges:
            if self.clip.rules.objects == "any_frame":
                self._meet(index, np.flatnonzero(count_ids(truth)))
            elif (largest := int(result.max())) > len(self._first_frame):
                raise InputError(
                    f"{self.clip.name}, frame {self._stems[index]}: the result holds the ID "
                    f"{largest}, but the first mask's go up to {len(self._first_frame)}"
                )
        within = _occupied(result, truth)
        # The tolerance at boundaries is a share of the full frame's diagonal, in whole pixels.
        tolerance = np.ceil(BOUNDARY * np.linalg.norm(truth.shape))
        self._evaluator.boundary = (tolerance - 0.5) / np.linalg.norm(truth[within].shape)
        self._evaluator.feed_frame(result[within], truth[within])

    def conclude(self) -> list[ObjectScore]:
        """One score for each object that counts in any frame."""
        last = len(self._stems) - 1
        counted = self._stated or {
            object_id: list(range(first + 1, last))
            for object_id, first in self._first_frame.items()
        }
        scores = []
        for object_id, indices in sorted(counted.items()):
            if not indices:
                continue
            measures = []
            for values in (self._evaluator.object_iou, self._evaluator.boundary_f):
                # The evaluator has a value for each frame fed since it first saw the object.
                known_since = last - len(values[object_id])
                of_object = np.array(values[object_id], dtype=np.float64)
                measures.append(Measure(of_object[np.array(indices) - known_since]))
            stems = [self._stems[index] for index in indices]
            scores.append(ObjectScore(self.clip.name, object_id, stems, *measures))
        return scores

    def _state_ranges(self) -> None:
        position = {int(stem): index for index, stem in enumerate(self._stems)}
        for object_id, frames in self.clip.ranges.items():
            numbers = frames.counted(self.clip.rules.frame_step or 1)
            if missing := [n for n in numbers if position.get(n) not in self.indices]:
                raise InputError(
                    f"{self.clip.name}: object {object_id} is to be scored in frame {missing[0]}, "
                    "which is not among the frames between the clip's first and last"
                )
            self._stated[object_id] = [position[n] for n in numbers]
            self._evaluator.objects_in_gt.add(object_id)

    def _meet(self, index: int, ids: np.ndarray) -> None:
        """Objects that may appear for the first time."""
        for object_id in ids.tolist():
            if object_id != 0 and object_id not in self._first_frame:
                self._first_frame[object_id] = index
                self._evaluator.objects_in_gt.add(object_id)


def _occupied(result: np.ndarray, truth: np.ndarray) -> tuple[slice, slice]:
    """The part of the frame that holds objects, and one pixel around it.

    J and F are the same there as in the full frame, and take a fraction of the time.
    """
    left, top, width, height = cv2.boundingRect(cv2.bitwise_or(result, truth))
    rows = slice(max(0, top - 1), top + height + 1)
    columns = slice(max(0, left - 1), left + width + 1)
    return rows, columns


def score_clip(clip: EvalClip, results: Path) -> list[ObjectScore]:
    """Score the masks ``<frame>.png`` in a folder.

    Raises:
        InputError: a mask cannot be read, or differs in size from the ground truth.
    """
    scorer = ClipScorer(clip)
    for index in scorer.indices:
        stem = clip.video.frame(index).stem
        truth_path, result_path = clip.video.masks[stem], results / f"{stem}.png"
        result, _ = read_mask(result_path, white=clip.white)
        truth = fit_mask(clip.read_mask(stem)[0], result.shape, truth_path)
        if truth.shape != result.shape:
            raise InputError(
                f"{truth_path}: {truth.shape[1]} x {truth.shape[0]}, but {result_path}: "
                f"{result.shape[1]} x {result.shape[0]}"
            )
        scorer.feed(index, result, truth)
    return scorer.conclude()


def score_clips(
    clips: Sequence[EvalClip], result_root: Path, processes: int
) -> tuple[list[ObjectScore], dict[str, str]]:
    """Score the results ``<clip>/<frame>.png``, several clips at a time, the longest first.

    Returns:
        The scores in the order of the clips, and why a clip has none, by name.
    """
    order = sorted(range(len(clips)), key=lambda i: -len(clips[i].video))
    by_length = [clips[i] for i in order]
    folders = [result_root / clip.name for clip in by_length]
    # Starting a process takes as long as scoring some hundred frames.
    worth = sum(len(clip.video) for clip in clips) // FRAMES_OF_A_PROCESS
    with worker_map(max(1, min(processes, len(clips), worth))) as spread:
        outcomes = dict(zip(order, spread(_try_score, by_length, folders), strict=True))
    scores: list[ObjectScore] = []
    faults: dict[str, str] = {}
    for index, clip in enumerate(clips):
        outcome = outcomes[index]
        if isinstance(outcome, str):
            faults[clip.name] = outcome
        else:
            scores += outcome
    return scores, faults


def _try_score(clip: EvalClip, results: Path) -> list[ObjectScore] | str:
    try:
        return score_clip(clip, results)
    except InputError as error:
        return str(error)


@dataclass(frozen=True)
class Score:
    """Means over objects, in percent.

    Attributes:
        v: of LVOS, see :attr:`ObjectScore.v`.
    """

    name: str
    j: float
    f: float
    j_recall: float
    j_decay: float
    f_recall: float
    f_decay: float
    v: float

    @property
    def jf(self) -> float:
        return (self.j + self.f) / 2

    @classmethod
    def mean_of(cls, name: str, scores: Sequence[ObjectScore]) -> "Score":
        each = [
            (s.j.mean, s.f.mean, s.j.recall, s.j.decay, s.f.recall, s.f.decay, s.v) for s in scores
        ]
        return cls(name, *np.mean(each, axis=0).tolist())


def summarize(scores: Sequence[ObjectScore]) -> list[Score]:
    """One line per clip, then the mean over all objects (not over clips, as in DAVIS)."""
    rows = [
        Score.mean_of(clip, [score for score in scores if score.clip == clip])
        for clip in dict.fromkeys(score.clip for score in scores)
    ]
    return [*rows, Score.mean_of("mean", scores)]


def seen_and_unseen(scores: Sequence[ObjectScore], unseen: Collection[str]) -> list[Score]:
    """As LVOS's evaluator: the means over the objects of seen and of unseen classes, and the mean
    of both, which is the benchmark's figure. Empty if there are not both.

    Args:
        unseen: clips.
    """
    groups = [[s for s in scores if (s.clip in unseen) == new] for new in (False, True)]
    if not all(groups):
        return []
    seen, new = (Score.mean_of(*each) for each in zip(("seen", "unseen"), groups, strict=True))
    both = np.mean([astuple(each)[1:] for each in (seen, new)], axis=0)
    return [seen, new, Score("mean of both", *both.tolist())]
