"""What to evaluate, with which method, and where the results go."""

from dataclasses import dataclass, field, fields, replace

from omegaconf import DictConfig

from stma.errors import InputError
from stma.evaluation.benchmarks import BenchmarkConfig
from stma.inference.augmentation import AugmentConfig
from stma.inference.segmenter import SegmenterConfig
from stma.model.weights import read_segmenter_settings
from stma.runtime.config import check_paths, check_types, parse_config
from stma.runtime.workers import check_count

METHODS = ("stma", "copy", "flow")


@dataclass
class EvalConfig:
    """One evaluation.

    Attributes:
        root: of the benchmark's data.
        output: where masks, scores and pictures go.
        datasets: folder of all datasets.
        weights: a file written by train.py, or the name of shipped weights, for the method
            ``stma``.
        method: ``stma``, or a baseline without training: ``copy`` or ``flow``.
        split: a list of clips in ``ImageSets``; null for all with masks.
        clips: only these clips; null for all.
        benchmark: what its files mean and what it asks for.
        segmenter: how a clip is segmented.
        augment: the views of a clip that are averaged.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        threads: of each process on a CPU; null for all cores.
        overwrite: start over: remove what an earlier run left in the output.
        fps_only: measure the speed and write nothing.
        report: make the HTML page; ``compare`` is another evaluation's output to show beside this.
        videos: draw an overlay video of each clip.
    """

    root: str
    output: str
    datasets: str = "datasets"
    weights: str = "small"
    method: str = "stma"
    split: str | None = None
    clips: list[str] | None = None
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    fps_only: bool = False
    report: bool = True
    compare: str | None = None
    videos: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_paths(self, "root", "output", "compare")
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; choose one of {METHODS}")
        if self.method != "stma" and not self.augment.is_plain:
            raise InputError(f"augment: the method {self.method} has no views to average")
        for scale in self.augment.scales:
            try:
                replace(self.segmenter, scale=self.segmenter.scale * scale)
            except InputError as error:
                raise InputError(f"augment.scales holds {scale}: {error}") from error
        if self.threads is not None:
            check_count("threads", self.threads, at_least=1)


def parse_eval_config(config: DictConfig) -> EvalConfig:
    """Fill the segmenter's ``auto`` settings from the weights, and check everything.

    Raises:
        InputError: see :func:`~stma.runtime.config.parse_config`; or the weights do not exist.
    """
    segmenter = config.get("segmenter")
    if isinstance(segmenter, DictConfig):
        of_weights = {}
        if config.get("method") == "stma" and isinstance(config.get("weights"), str):
            of_weights = read_segmenter_settings(config.weights)
        for setting in fields(SegmenterConfig):
            if segmenter.get(setting.name) == "auto":
                segmenter[setting.name] = of_weights.get(setting.name, setting.default)
    return parse_config(EvalConfig, config)
