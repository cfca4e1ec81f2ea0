from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import DictConfig

from stma.compose import (
    benchmark_names,
    check_choices,
    dataset_names,
    hydra_errors_told,
    load_config,
    load_data_config,
    load_dataset_config,
    load_resolved,
    model_names,
    quoted,
)
from stma.data.config import NEEDLESS, DatasetConfig
from stma.errors import InputError
from stma.runtime.config import parse_config
from stma.training.config import TrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"
STAGES = sorted(path.stem for path in (CONFIGS / "stage").glob("*.yaml"))


@pytest.fixture(scope="module")
def everything() -> DictConfig:
    """All stages, and a dataset of each name in the first."""
    sources = "stages.static.data.sources"
    given = [f"+dataset@{sources}.{name}={name}" for name in dataset_names(CONFIGS)]
    given += [f"stage=[static,{','.join(set(STAGES) - {'static'})}]", "datasets=/data"]
    given += ["stages.shipped_distill.teacher=vit.pth"]
    return load_resolved(CONFIGS, "train", given)


@pytest.mark.parametrize("dataset", dataset_names(CONFIGS))
def test_every_dataset_composes(everything, dataset: str) -> None:
    """And shows only what means something to its kind."""
    composed = everything.stages.static.data.sources[dataset]
    block = parse_config(DatasetConfig, composed)
    assert block.root.startswith("/data/") or dataset in ("folder", "procedural", "composite")
    assert set(composed) == {f.name for f in fields(DatasetConfig)} - set(NEEDLESS[block.kind])


def test_the_base_of_all_datasets_is_the_dataclass() -> None:
    assert load_dataset_config(CONFIGS, "folder") == DatasetConfig()


def test_every_stage_composes(everything) -> None:
    stages = parse_config(TrainConfig, everything).stages
    assert sorted(stages) == STAGES
    assert all(stage.data.sources for stage in stages.values())


def test_the_papers_stages_have_its_numbers() -> None:
    """Shared spec, section 6: what the paper states, and what is ours there."""
    overrides = ["experiment=static_bl30k_video", "pretrained=null"]
    stages = parse_config(TrainConfig, load_config(CONFIGS, "train", overrides)).stages
    assert list(stages) == ["static", "bl30k", "video"]
    static, bl30k, video = stages.values()
    assert [c.iterations for c in (static, bl30k, video)] == [150_000, 250_000, 160_000]
    assert all(c.batch_size == 16 and c.optimizer.learning_rate == 3e-5 for c in (static, bl30k))
    assert [c.data.num_frames for c in (static, bl30k, video)] == [3, 5, 5]
    assert [c.data.max_objects for c in (static, bl30k, video)] == [1, 3, 3]
    assert video.optimizer.decay_at == [100_000 / 160_000]
    assert static.optimizer.decay_at == bl30k.optimizer.decay_at == []
    assert {n: s.repeats for n, s in video.data.sources.items()} == {"davis": 5, "youtube": 1}
    assert len(static.data.sources) == 6
    assert all(s.transform.thin_plate > 0 for s in static.data.sources.values())
    assert bl30k.data.max_gap_starts == [0.0, 0.1, 0.3, 0.8]


def test_a_source_can_be_added_weighted_and_taken_out() -> None:
    overrides = [
        "stage=video",
        "+dataset@stages.video.data.sources.extra=procedural",
        "stages.video.data.sources.extra.weight=0.1",
        "~stages.video.data.sources.youtube",
    ]
    stages = parse_config(TrainConfig, load_config(CONFIGS, "train", overrides)).stages
    assert list(stages["video"].data.sources) == ["davis", "extra"]
    assert stages["video"].data.sources["extra"].weight == 0.1


def test_the_rows_of_table_3_and_any_other_list() -> None:
    for override, expected in (
        ("experiment=video", ["video"]),
        ("experiment=static_video", ["static", "video"]),
        ("stage=[static,procedural,video]", ["static", "procedural", "video"]),
    ):
        assert list(load_config(CONFIGS, "train", [override]).stages) == expected


def test_names_that_look_like_numbers_stay_names() -> None:
    """04259896e2 is a float to YAML; the seven clips that XMem leaves out of YouTube-VOS."""
    left_out = "01e64dd36a 04259896e2 1336440745 5bc77844da 5ee23ca60e 738e5a0a14 f8af30d4b6"
    for dataset in ("youtubevos2018", "youtubevos2019"):
        assert load_dataset_config(CONFIGS, dataset).exclude == left_out.split()
    block = load_dataset_config(CONFIGS, "davis2017", ["exclude=['5e5']"])
    assert block.exclude == ["5e5"]


def test_values_with_any_characters_can_be_quoted() -> None:
    names = ["/my data", "/a=b", "/it's [x]{y}", "/back\\slash", "/a,b", "/end\\", "/\\'x"]
    given = f"exclude=[{','.join(map(quoted, names))}]"
    assert load_dataset_config(CONFIGS, "folder", [given]).exclude == names
    with pytest.raises(InputError, match="in quotes"):
        load_dataset_config(CONFIGS, "folder", ["root=/a [x]"])
    with pytest.raises(InputError, match="nope"):
        load_dataset_config(CONFIGS, "folder", ["root=${nope}"])


def test_settings_of_one_dataset_and_of_all_data() -> None:
    config = load_data_config(CONFIGS, "davis2017", ["split=2017/val", "data.num_frames=7"])
    assert config.sources["davis2017"].split == "2017/val"
    assert config.num_frames == 7


@pytest.mark.parametrize(
    ("dataset", "override", "message"),
    [
        ("davis", "split=x", "no dataset davis; there are big, bl30k"),
        ("davis2017", "splitt=x", "splitt"),
        ("davis2017", "repeats=0", "repeats is 0"),
        ("davis2017", "split", "split"),
    ],
)
def test_mistakes_are_named(dataset: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data_config(CONFIGS, dataset, [override])


@pytest.mark.parametrize(
    "arguments",
    [
        ["stage=[static,video]", "model=convvit_b,vit_b"],
        ["output=stage=nope", "+stage=nope", "stages.video.model=nope", "--multirun"],
        ["stage=mine", "--config-dir=/my/configs"],
        ["stage=${oc.env:STAGE}", "hydra/launcher=submitit_slurm", "nothing=at_all", "stage=[]"],
    ],
)
def test_choices_that_exist_or_are_none_pass(arguments: list[str]) -> None:
    check_choices(CONFIGS, arguments)


@pytest.mark.parametrize("choice", ["stage=nope", "stage=[video,nope]", "model=vit_b,nope"])
def test_a_choice_that_does_not_exist_is_named(choice: str) -> None:
    with pytest.raises(InputError, match=r"no (stage|model) nope; there are .*(video|vit_b)"):
        check_choices(CONFIGS, [choice])
    with pytest.raises(InputError, match="no experiment null; there are debug"):
        check_choices(CONFIGS, ["experiment=null"])


def test_a_variant_that_does_not_exist_is_told_before_a_sweep_begins() -> None:
    check_choices(CONFIGS, ["model.variant=full,joint", "model.variant=${oc.env:VARIANT}"])
    for written in ("model.variant=full,nosuch,joint", "+model.variant='full, nosuch'"):
        with pytest.raises(InputError, match=r"no variant nosuch; .*no_spatial_memory"):
            check_choices(CONFIGS, ["-m", written])
    with pytest.raises(InputError, match="no variant no-object"):
        check_choices(CONFIGS, ["model.variant=no-object"])


def test_a_script_checks_choices_too() -> None:
    with pytest.raises(InputError, match=r"^stage=nope: no stage nope; there are "):
        load_resolved(CONFIGS, "train", ["stage=nope"])


def test_a_wrong_override_is_shown_as_it_was_written() -> None:
    for override in ("nothing=1", "+benchmark=folder", "segmenter.[=2"):
        with pytest.raises(InputError, match=r"^mine: "):
            load_resolved(CONFIGS, "eval", ["root=x", override], "mine")


def test_what_composites_are_cut_from_is_chosen_by_name() -> None:
    config = load_data_config(
        CONFIGS,
        "composite",
        ["cut_from.a=davis2017", "cut_from.a.split=2017/val", "grounds.b=ecssd", "datasets=/d"],
    )
    block = config.sources["composite"]
    assert (block.cut_from["a"].root, block.cut_from["a"].split) == ("/d/DAVIS", "2017/val")
    assert block.grounds["b"].kind == "images"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("save_evry=3", "no setting save_evry; did you mean save_every?"),
        (
            "stages.video.optimizer.learning_rat=3",
            "no setting stages.video.optimizer.learning_rat; did you mean "
            "stages.video.optimizer.learning_rate?",
        ),
        ("zzz=3", "no setting zzz; the top level has accumulate, "),
        (
            "segmenter={shrt_side: 3}",
            "no setting segmenter.shrt_side; did you mean segmenter.short_s",
        ),
        ("output=a b=c", "output=a b=c: "),
    ],
)
def test_what_hydra_refuses_is_told_in_one_line(override: str, message: str, monkeypatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # put back afterwards
    arguments = ["stage=video", override]
    with (
        pytest.raises(InputError, match=r"^.*$") as error,
        hydra_errors_told(arguments),
    ):
        load_config(CONFIGS, "train", arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_without_configs_it_is_said_where_they_should_be(tmp_path) -> None:
    for look in (dataset_names, benchmark_names, model_names):
        with pytest.raises(InputError, match=r"none: no such folder; .* a checkout"):
            look(tmp_path / "none")
    with pytest.raises(InputError, match="none: no such folder"):
        check_choices(tmp_path / "none", ["stage=video"])
