"""What each stream of a trained network carries: J with one of them cut at inference.

python scripts/probe_streams.py runs/demo/weights.safetensors runs/demo/clips --split val
"""

import argparse

from stma.data.video_folder import find_videos
from stma.device import resolve_device
from stma.errors import InputError
from stma.inference.segmenter import SegmenterConfig
from stma.inference.streams import probe_streams
from stma.model.weights import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a file of train.py")
    parser.add_argument("root", help="fully annotated videos in the DAVIS layout")
    parser.add_argument("--split", help="a list in ImageSets; all videos without it")
    parser.add_argument("--memory-interval", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    try:
        model = load_model(arguments.weights, resolve_device(arguments.device))
        videos = find_videos(arguments.root, arguments.split)
        if sparse := [video.name for video in videos if not video.fully_annotated]:
            raise InputError(f"not every frame has a mask in {', '.join(sparse)}")
        config = SegmenterConfig(memory_interval=arguments.memory_interval)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error

    print(f"{'':32} {'J':>6} {'change':>7}")
    trained = cosine = 0.0
    for probe in probe_streams(model, videos, config):
        if probe.name == "as trained":
            trained, cosine = probe.j, probe.cosine
        print(f"{probe.name:32} {probe.j:6.1f} {probe.j - trained:+7.1f}", flush=True)
    print(f"\nmean cosine between the tokens of two objects of one frame: {cosine:.2f}")


if __name__ == "__main__":
    main()
