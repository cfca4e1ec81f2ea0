"""The settings of a training run: its stages, and everything they share."""

from dataclasses import dataclass, field
from typing import Any

from stma.data.dataset import DataConfig
from stma.errors import InputError
from stma.model.factory import ModelConfig
from stma.model.streams import STREAMS
from stma.runtime.config import check_paths, check_types
from stma.runtime.device import check_precision
from stma.runtime.workers import check_count
from stma.training.losses import LossConfig
from stma.training.optimizer import OptimizerConfig

LOGGERS = ("tensorboard", "wandb", "mlflow", None)


@dataclass
class StageConfig:
    """One stage.

    Attributes:
        iterations: its length.
        max_minutes: end earlier, after this time; the learning rate follows whichever comes first
            (the frame gap's curriculum and the bootstrapping follow only the iterations). Runs that
            end by time are not reproducible.
        batch_size: clips per iteration, over all processes.
        teacher: a public ViT's weights, whose features the backbone learns in this stage instead of
            masks (ours); null for none.
    """

    iterations: int = 250_000
    max_minutes: float | None = None
    batch_size: int = 16
    teacher: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise InputError(f"max_minutes is {self.max_minutes}; give more than 0, or null")
        check_paths(self, "teacher")


@dataclass
class ValidationConfig:
    """A small set that is segmented and scored at intervals.

    Attributes:
        root: a folder in the DAVIS layout with all masks; null for no validation.
        split, clips: as for evaluation.
        every: iterations.
    """

    root: str | None = None
    split: str | None = None
    clips: list[str] | None = None
    every: int = 5000

    def __post_init__(self) -> None:
        check_types(self)
        check_paths(self, "root")
        if self.every < 1:
            raise InputError(f"every is {self.every}; give 1 or more")
        for name in ("split", "clips"):
            if self.root is None and getattr(self, name) is not None:
                raise InputError(
                    f"{name} is {getattr(self, name)}, but root is null, so nothing would be "
                    "validated; give validation.root too"
                )


@dataclass
class TrainConfig:
    """A training run.

    Attributes:
        output: folder for all results, with a subfolder for each stage.
        datasets: folder of the datasets, to which their blocks refer.
        stages: by name, run in order, each from the previous one's weights.
        weights: the first stage starts from these, of the same architecture: a file, the folder of
            another run, or the name of shipped ones (``small``); null starts fresh.
        pretrained: the first stage starts from this public checkpoint of the backbone, of ConvMAE,
            MAE, MoCo v3, DINOv2 or, with ``model=timm``, of timm (``timm`` downloads it); null for
            none, or with ``weights``.
        strict_weights: every tensor of ``weights`` must fit; false loads those that do, and logs
            the names of the others.
        num_workers: processes that make clips, per training process; 0 makes them between steps.
        precision: ``auto`` (bf16 on devices that multiply it, fp32 elsewhere), ``fp32``, ``bf16``
            or ``fp16``.
        tf32: what is left in fp32 on CUDA may multiply matrices in TF32.
        cudnn_benchmark: cuDNN tries its algorithms for each new size and takes the fastest, which
            may differ from run to run.
        accumulate: parts that a process splits its share of a batch into, to save memory.
        checkpoint_blocks: recompute the activations of the STML blocks in the backward pass, to
            save memory.
        compile: compile the blocks, the value encoder and the decoder with ``torch.compile``.
        ema: decay of an exponential moving average of the weights, which is then saved and
            validated in their place; 0 for none.
        logger: of curves and pictures: ``tensorboard``, ``wandb``, ``mlflow``, or null for none.
        log_every, picture_every, save_every: in iterations.
        save_minutes: also save after this many minutes; null: only by iterations.
        keep_checkpoints: how many of the newest stay; the best by validation stays too.
        resume: continue from the output's newest checkpoints; false starts all stages over, and
            removes their results first.
        max_skipped: steps in a row with a loss or gradient that is not finite, after which the run
            stops; those where fp16 overflowed do not count.
        segmenter: segmenter settings to store with the weights, also used in validation.
        dry_run: print memory use and the largest batch that fits, without training.
    """

    output: str
    stages: dict[str, StageConfig] = field(default_factory=dict)
    datasets: str = "datasets"
    weights: str | None = None
    pretrained: str | None = None
    strict_weights: bool = True
    seed: int = 0
    num_workers: int = 4
    device: str = "auto"
    precision: str = "auto"
    tf32: bool = False
    cudnn_benchmark: bool = False
    accumulate: int = 1
    checkpoint_blocks: bool = False
    compile: bool = False
    ema: float = 0.0
    logger: str | None = "tensorboard"
    log_every: int = 50
    picture_every: int = 1000
    save_every: int = 5000
    save_minutes: float | None = 10.0
    keep_checkpoints: int = 2
    resume: bool = True
    max_skipped: int = 10
    segmenter: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_paths(self, "output", "weights", "pretrained")
        positive = (
            "accumulate",
            "log_every",
            "picture_every",
            "save_every",
            "keep_checkpoints",
            "max_skipped",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.save_minutes is not None and self.save_minutes <= 0:
            raise InputError(f"save_minutes is {self.save_minutes}; give more than 0, or null")
        check_count("num_workers", self.num_workers, at_least=0)
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; give 0 or more, and less than 2^63")
        if self.weights is not None and self.pretrained is not None:
            raise InputError(
                f"weights is {self.weights} and pretrained {self.pretrained}; give only one "
                "of them (weights include a backbone)"
            )
        if not 0 <= self.ema < 1:
            raise InputError(f"ema is {self.ema}; give a decay from 0 (none) to less than 1")
        check_precision(self.precision)
        if self.logger not in LOGGERS:
            raise InputError(f"logger is {self.logger!r}; choose one of {LOGGERS}")
        streams = STREAMS.get(self.model.variant)
        for name, stage in self.stages.items():
            if stage.loss.objects > 0 and not (streams and streams.gives_object_tokens):
                raise InputError(
                    f"stages.{name}.loss.objects is {stage.loss.objects}, but with model.variant="
                    f"{self.model.variant} the blocks give no object tokens; leave it at 0"
                )
