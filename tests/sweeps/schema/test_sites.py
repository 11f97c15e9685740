"""A site's profile and what is different for one stage reach the stage that they are for; the study's own word counts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.sites import Site, choose_site, read_sites, sites_file
from retain.sweeps.tree.tree import device_mismatch
from tests.studies import tiny_fields

NORTH = {
    "match": ["north*", "login[0-9]"],
    "partition": "gpu,gpu-preempt",
    "account": "me",
    "gres": "gpu:a100:{gpus}",
    "setup": ["module load python"],
    "environment": {"NCCL_SOCKET_IFNAME": "ib0", "LEVEL": 2},
    "extra": {"hint": "nomultithread"},
    "minutes": 1200,
}


def sites(folder: Path, **fields: Any) -> Path:
    path = folder / "sites.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def execution(**fields: Any) -> Execution:
    return check_study(tiny_fields(execution=fields), Path("tiny.yaml")).study.execution


def test_without_a_file_there_are_no_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETAIN_SITES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert sites_file() == tmp_path / "retain" / "sites.yaml"
    assert read_sites() == {}


def test_a_file_named_in_the_environment_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_SITES", str(tmp_path / "mine.yaml"))
    with pytest.raises(StudyError, match=r"mine\.yaml: no such file; correct RETAIN_SITES"):
        read_sites()
    sites(tmp_path, north=NORTH).rename(tmp_path / "mine.yaml")
    assert read_sites()["north"].account == "me"


@pytest.mark.parametrize("names", [["northern"], ["elsewhere", "login7"]])
def test_a_profile_is_chosen_by_the_machines_names(names: list[str], tmp_path: Path) -> None:
    known = read_sites(sites(tmp_path, north=NORTH, south={"match": "south"}, named={}))
    chosen = choose_site(known, None, names)
    assert chosen is not None
    assert chosen[0] == "north"


def test_no_profile_is_chosen_where_none_fits_and_a_named_one_always(tmp_path: Path) -> None:
    known = read_sites(sites(tmp_path, north=NORTH, named={"qos": "low"}))
    assert choose_site(known, None, ["login10", "xnorth"]) is None
    assert choose_site(known, "named", ["north1"]) == ("named", Site(qos="low"))


def test_two_profiles_that_fit_and_an_unknown_one_are_refused(tmp_path: Path) -> None:
    known = read_sites(sites(tmp_path, north=NORTH, other={"match": "*1"}))
    with pytest.raises(StudyError, match=r"north and other both match north1; choose with --site"):
        choose_site(known, None, ["north1"])
    with pytest.raises(StudyError, match=r"--site sud: not in .*; the sites there are north, other"):
        choose_site(known, "sud", [])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("north: {partitoin: gpu}", "sites.yaml: north.partitoin: unknown field; did you mean partition?"),
        ("north: {nodes: 2}", "sites.yaml: north.nodes: unknown field; the fields here are partition, account"),
        ("north: {minutes: 0}", "sites.yaml: north.minutes: Input should be greater than 0 (it is 0)"),
        ("north: {environment: {A-B: 1}}", "sites.yaml: north.environment.A-B: String should match pattern"),
        ("north: gpu", "sites.yaml: it maps the name of each site to its fields; write `north: {partition: gpu}`"),
        ("- north", "sites.yaml: it maps the name of each site to its fields"),
        ("north: {qos: a, qos: b}", "sites.yaml: not YAML: qos is given twice"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_file_the_field_and_the_cure(
    content: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "sites.yaml").write_text(content)
    with pytest.raises(StudyError) as refused:
        read_sites(tmp_path / "sites.yaml")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_study_counts_more_than_the_site_and_a_stage_more_than_the_study() -> None:
    study = execution(
        devices=2,
        slurm={"qos": "normal", "setup": ["ulimit -n 4096"], "environment": {"LEVEL": 3}, "account": None},
        stages={
            "pretrain": {"devices": 8, "micro_batch": 1, "slurm": {"nodes": 2, "partition": "big", "setup": ["date"]}}
        },
    )
    site = Site(**NORTH)
    pretrain, finetune = study.of_stage("pretrain", site), study.of_stage("finetune", site)
    assert (pretrain.devices, pretrain.micro_batch, pretrain.slurm.nodes) == (8, 1, 2)
    assert (finetune.devices, finetune.micro_batch, finetune.slurm.nodes) == (2, None, 1)
    assert (pretrain.slurm.partition, finetune.slurm.partition) == ("big", "gpu,gpu-preempt")
    assert pretrain.slurm.qos == finetune.slurm.qos == "normal"
    assert finetune.slurm.account is None
    assert finetune.slurm.environment == {"NCCL_SOCKET_IFNAME": "ib0", "LEVEL": 3}
    assert pretrain.slurm.setup == ["module load python", "ulimit -n 4096", "date"]
    assert finetune.slurm.minutes is None, "a site's minutes are the most that it allows, not a walltime"


def test_without_overrides_every_stage_runs_as_the_study_says() -> None:
    study = execution(devices=4, save_minutes=3, slurm={"memory_gb": 64})
    for kind in ("pretrain", "posttrain", "finetune"):
        stage = study.of_stage(kind)
        assert (stage.devices, stage.save_minutes, stage.slurm.memory_gb) == (4, 3, 64)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"slurm": {"nodes": 3}, "devices": 4}, "execution.slurm.nodes: 3 nodes cannot share 4 devices evenly"),
        ({"stages": {"pretrain": {"slurm": {"nodes": 2}}}}, "2 nodes cannot share 1 devices of pretrain evenly"),
        ({"stages": {"pretrain": {"devcies": 2}}}, "execution.stages.pretrain.devcies: unknown field; did you mean"),
        (
            {"stages": {"pretune": {}}},
            "execution.stages.pretune: Input should be 'pretrain', 'posttrain' or 'finetune'",
        ),
        ({"stages": {"finetune": {"parallel": 2}}}, "execution.stages.finetune.parallel: unknown field"),
    ],
)
def test_resources_that_make_no_sense_are_refused_at_plan_time(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError) as refused:
        execution(**fields)
    assert sentence in str(refused.value)


def test_a_batch_that_the_devices_of_one_stage_do_not_divide_is_named() -> None:
    file = check_study(tiny_fields(execution={"stages": {"posttrain": {"devices": 3}}}), Path("tiny.yaml"))
    assert device_mismatch(file) == (
        "posttrain.batch: 8 sequences are not divided by execution.stages.posttrain.devices: 3"
    )
