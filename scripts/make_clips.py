"""Write procedural clips in the DAVIS layout: python scripts/make_clips.py OUTPUT --clips 16"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stma.data.procedural import SceneConfig, procedural_clip
from stma.errors import InputError, input_errors_end_the_program
from stma.pictures import save_mask, save_picture


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="root folder to make")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=14, help="of each clip")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--overwrite", action="store_true", help="clips that OUTPUT already has")
    parser.add_argument("--seed", type=int, default=1, help="train.py's default is 0")
    arguments = parser.parse_args()
    if arguments.clips < 1 or arguments.frames < 1:
        parser.error("give 1 or more clips and frames")
    for folder in ("JPEGImages", "Annotations", "ImageSets"):
        if (arguments.output / folder).exists():
            if not arguments.overwrite:
                raise InputError(
                    f"{arguments.output / folder} exists; give --overwrite to replace it"
                )
            shutil.rmtree(arguments.output / folder)
    write_clips(
        arguments.output,
        SceneConfig(height=arguments.height, width=arguments.width),
        arguments.clips,
        arguments.frames,
        arguments.seed,
    )


def write_clips(root: Path, config: SceneConfig, clips: int, frames: int, seed: int) -> None:
    """Write ``clips`` clips below ``root``, frames as PNG, and ``ImageSets/val.txt``."""
    names = [f"clip-{index:03d}" for index in range(clips)]
    for index, name in enumerate(tqdm(names, desc="clips", unit="clip")):
        image_folder = root / "JPEGImages" / name
        mask_folder = root / "Annotations" / name
        image_folder.mkdir(parents=True, exist_ok=True)
        mask_folder.mkdir(parents=True, exist_ok=True)
        images, masks, _ = procedural_clip(config, np.arange(frames, dtype=float), (seed, index))
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            save_picture(image_folder / f"{number:05d}.png", image)
            save_mask(mask_folder / f"{number:05d}.png", mask)
    (root / "ImageSets").mkdir(exist_ok=True)
    (root / "ImageSets" / "val.txt").write_text("".join(f"{name}\n" for name in names))


if __name__ == "__main__":
    main()
