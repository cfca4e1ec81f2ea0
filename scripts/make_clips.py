"""Write sampled clips in the DAVIS layout: python scripts/make_clips.py OUTPUT --clips 16

The clips are procedural, unless --dataset names another block of configs/dataset. Its settings can
be changed: scene.max_objects=8 scene.blur=1.0; --dataset composite cut_from.mine=davis2017 ...
"""

import argparse
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from stma.compose import dataset_names, load_data_config
from stma.data.dataset import ClipDataset
from stma.data.pictures import save_clip
from stma.errors import InputError, input_errors_end_the_program
from stma.runtime.workers import worker_map

RECORD = "clips.yaml"  # beside the clips: how they were made
STREAM = 2**32  # added to the seed: a separate stream from training's
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="root folder to make")
    parser.add_argument("overrides", nargs="*", help="settings of the dataset: KEY=VALUE")
    parser.add_argument("--dataset", default="procedural", choices=dataset_names(CONFIGS))
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=14, help="of each clip")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace clips that OUTPUT already has"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", default="val", help="name of the list in ImageSets")
    parser.add_argument("--png", action="store_true", help="frames as PNG instead of JPEG")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_intermixed_args()
    if min(arguments.clips, arguments.frames, arguments.workers) < 1:
        parser.error("give 1 or more clips, frames and workers")
    if arguments.seed < 0 or Path(arguments.split).name != arguments.split:
        parser.error("give a seed of 0 or more, and a split that is a plain name")
    config = replace(
        load_data_config(CONFIGS, arguments.dataset, arguments.overrides),
        num_frames=arguments.frames,
        height=arguments.height,
        width=arguments.width,
        max_objects=255,
        max_gaps=[1],
        max_gap_starts=[0.0],
        reverse=0.0,
    )
    dataset = ClipDataset(config, arguments.clips, STREAM + arguments.seed)
    output: Path = arguments.output
    for folder in ("JPEGImages", "Annotations", "ImageSets"):
        if (output / folder).exists():
            if not (output / RECORD).is_file():
                raise InputError(f"{output / folder} exists, and was not made by this script")
            if not arguments.overwrite:
                raise InputError(f"{output / folder} exists; give --overwrite to replace it")
            shutil.rmtree(output / folder)
    try:
        output.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(config), output / RECORD)
    except OSError as error:
        raise InputError(f"{output}: cannot be written to ({error})") from error

    names = [
        f"clip-{index:0{max(3, len(str(arguments.clips - 1)))}d}"
        for index in range(arguments.clips)
    ]
    suffix = ".png" if arguments.png else ".jpg"
    write = partial(write_clip, output, dataset, suffix)
    with worker_map(min(arguments.workers, len(names))) as spread:
        work = spread(write, enumerate(names))
        for _ in tqdm(work, desc="clips", total=len(names), unit="clip"):
            pass
    (output / "ImageSets").mkdir(parents=True)
    listing = "".join(f"{name}\n" for name in names)
    (output / "ImageSets" / f"{arguments.split}.txt").write_text(listing)


def write_clip(root: Path, clips: ClipDataset, suffix: str, job: tuple[int, str]) -> None:
    """Write clip number ``job[0]`` under the name ``job[1]``."""
    index, name = job
    clip = clips.sample(index)
    save_clip(root, name, clip.frames, clip.masks, suffix)


if __name__ == "__main__":
    main()
