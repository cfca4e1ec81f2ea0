"""Draw sampled clips with their masks, as training sees them: a contact sheet (PNG).

python scripts/show_clips.py davis2017 root=/data/DAVIS --output clips.png
Any setting of the dataset can be changed, and those of all data as data.KEY=VALUE.
"""

import argparse
from pathlib import Path

from stma.compose import dataset_names, load_data_config
from stma.data.dataset import ClipDataset
from stma.data.pictures import contact_sheet, draw_overlay, save_picture
from stma.errors import input_errors_end_the_program

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help=f"one of {', '.join(dataset_names(CONFIGS))}")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=Path("clips.png"))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=160, help="of a frame on the sheet")
    arguments = parser.parse_intermixed_args()
    if min(arguments.clips, arguments.height) < 1:
        parser.error("give 1 or more clips and pixels")
    if arguments.output.suffix not in (".png", ".jpg") or not arguments.output.parent.is_dir():
        parser.error(f"--output: {arguments.output}: give a .png or .jpg in a folder that exists")
    config = load_data_config(CONFIGS, arguments.dataset, arguments.overrides)
    dataset = ClipDataset(config, arguments.clips, arguments.seed)
    print(dataset.describe())
    rows = []
    for number in range(arguments.clips):
        clip = dataset.sample(number)
        overlays = [draw_overlay(*pair, 0.4) for pair in zip(clip.frames, clip.masks, strict=True)]
        rows.append((clip.name, overlays))
    save_picture(arguments.output, contact_sheet(rows, arguments.height))
    print(arguments.output)


if __name__ == "__main__":
    main()
