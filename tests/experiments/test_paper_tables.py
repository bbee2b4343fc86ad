"""`experiments/paper_tables.py`, with stand-ins for the experiments it starts."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import centroid_study
import compare_losses
import paper_tables
import pytest
import studies
from cifar100 import CIFAR100
from image_experiment import settings

pytestmark = pytest.mark.slow
EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
# Stands in for an experiment: tells its process id and environment, and ends at once,
# or fails, or does not end.
STAND_IN = """
import argparse, json, os, pathlib, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--output-dir", type=pathlib.Path)
parser.add_argument("--held-out", type=int, default=0)
parser.add_argument("--learning-rate", type=float, default=0.1)
args, rest = parser.parse_known_args()
args.output_dir.mkdir(parents=True, exist_ok=True)
def leave(name, content):
    (args.output_dir / name).write_text(json.dumps(content))
leave("environment.json", dict(os.environ))
unfinished = args.output_dir / "pid.unfinished"
unfinished.write_text(str(os.getpid()))
unfinished.replace(args.output_dir / "pid.json")
if "--never-ends" in rest:
    time.sleep(60)
if "--fails" in rest:
    sys.exit(1)
scored_on = "held-out training images" if args.held_out else "test images"
fixed = "--fixed" in rest
diverged = args.learning_rate > 1
accuracy = 0.5 + 0.1 * (args.learning_rate == (0.03 if fixed else 0.1)) + 0.3 * diverged
leave("settings.json", sys.argv[1:])
leave("result.json", {
    "accuracy": accuracy if args.held_out else 0.5,
    "data": {"scored_on": scored_on},
    "diverged": diverged,
})
sys.exit(diverged)
"""


@pytest.fixture
def tables(tmp_path):
    """Command for `paper_tables.py` in a folder where the experiments are stand-ins."""
    (tmp_path / "experiments").mkdir()
    script = tmp_path / "experiments" / "paper_tables.py"
    shutil.copy(EXPERIMENTS / "paper_tables.py", script)
    shared = tmp_path / "experiments" / "image_experiment"
    shutil.copytree(EXPERIMENTS / "image_experiment", shared)
    for name in ("cifar100", "emnist"):
        (tmp_path / "experiments" / f"{name}.py").write_text(STAND_IN)
    flags = ["--output-dir", tmp_path / "runs", "--results-dir", tmp_path / "results"]
    return [sys.executable, *map(str, [script, *flags])]


def finished(tables, *flags, **environment):
    """Runs to its end; returns the process."""
    return subprocess.run(
        [*tables, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def rows_of(*flags):
    return [row.name for row in paper_tables.parse_args(flags).rows]


def test_paper_tables_copy_results_on_the_test_images(tables, tmp_path):
    ended = finished(tables, "--only", "emnist_hinge")
    assert "emnist_hinge_seed0: finished, 50.00 % of the test images" in ended.stdout
    assert "1 of 1 runs are finished, 0 failed" in ended.stdout
    assert (tmp_path / "results" / "emnist_hinge_seed0.json").exists()


def test_paper_tables_keep_held_out_results_apart(tables, tmp_path):
    ended = finished(tables, "--only", "emnist_hinge", "--held-out", "500")
    assert "60.00 % of the held-out training images" in ended.stdout
    folder = tmp_path / "runs" / "held_out_500" / "emnist_hinge_seed0"
    assert (folder / "result.json").exists()
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "runs" / "emnist_hinge_seed0").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--jobs", "0"], "--jobs: must be at least 1, not 0"),
        (["--jobs", "-2"], "--jobs: must be at least 1, not -2"),
        (["--minutes", "0"], "--minutes: must be above 0, not 0"),
        (["--minutes", "nan"], "--minutes: must be above 0, not nan"),
        (["--seeds", "0", "-1"], "--seeds: must be at least 0, not -1"),
        (["--held-out", "-5"], "--held-out: must be at least 0, not -5"),
        (["--choose-rates", "0"], "--choose-rates: must be above 0, not 0"),
        (["--choose-rates", "0.1"], "--choose-rates needs --held-out"),
        (
            ["--choose-rates", "0.1", "--held-out", "9", "--learning-rate", "1"],
            "--choose-rates contradicts --learning-rate",
        ),
        (["--only", "hinge", "n7"], "--only n7 is in the name of no row"),
    ],
)
def test_paper_tables_refuse_what_is_out_of_range(flags, message, capsys):
    with pytest.raises(SystemExit) as ended:
        paper_tables.parse_args(flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


CHOOSE = ["--held-out", "500", "--jobs", "4", "--choose-rates"]


def test_rows_take_their_best_rates_on_held_out_images(tables, tmp_path):
    flags = [*CHOOSE, "0.03", "0.1", "0.1", "--seeds", "0", "1"]
    ended = finished(tables, "--only", "emnist_pedcc_n1_fixed", *flags)
    assert "2 of 2 runs are finished, 0 failed" in ended.stdout
    assert ended.stdout.count("rate0.1_seed100: starts") == 1
    names = {path.name for path in (tmp_path / "results").iterdir()}
    wanted = {f"emnist_pedcc_n1_fixed_rate0.03_seed{seed}.json" for seed in (0, 1)}
    assert names == wanted
    result = json.loads((tmp_path / "results" / min(wanted)).read_text())
    assert result["data"]["scored_on"] == "test images"
    assert result["choice"] == {
        "learning_rate": 0.03,
        "held_out": 500,
        "seed": 100,
        "tried": {
            "0.03": {"accuracy": 0.6, "diverged": False},
            "0.1": {"accuracy": 0.5, "diverged": False},
        },
    }


def argv_of(folder):
    return json.loads((folder / "settings.json").read_text())


def test_tuned_row_branches_from_the_fixed_one_of_its_rate_alone(tables, tmp_path):
    flags = ["--only", "emnist_pedcc_n1_tuned", *CHOOSE]
    assert finished(tables, *flags, "0.03", "0.1").returncode == 0
    runs = tmp_path / "runs"
    tried = argv_of(runs / "held_out_500" / "emnist_pedcc_n1_tuned_rate0.03_seed100")
    parent = runs / "held_out_500" / "emnist_pedcc_n1_fixed_rate0.03_seed100"
    assert tried[tried.index("--branch-from") + 1] == str(parent)
    # The best rates differ: 0.03 of the fixed one, 0.1 of this.
    assert "--branch-from" not in argv_of(runs / "emnist_pedcc_n1_tuned_rate0.1_seed0")


def test_tuned_row_branches_where_both_take_one_rate(tables, tmp_path):
    finished(tables, "--only", "emnist_pedcc_n1_tuned", *CHOOSE, "0.1")
    tuned = argv_of(tmp_path / "runs" / "emnist_pedcc_n1_tuned_rate0.1_seed0")
    parent = tmp_path / "runs" / "emnist_pedcc_n1_fixed_rate0.1_seed0"
    assert tuned[tuned.index("--branch-from") + 1] == str(parent)


def test_rate_that_diverged_on_held_out_images_is_not_taken(tables, tmp_path):
    ended = finished(tables, "--only", "emnist_hinge", *CHOOSE, "3", "0.03")
    assert "emnist_hinge: rate 0.03" in ended.stdout
    path = tmp_path / "results" / "emnist_hinge_rate0.03_seed0.json"
    tried = json.loads(path.read_text())["choice"]["tried"]
    assert tried["3"] == {"accuracy": 0.8, "diverged": True}
    assert ended.returncode == 0


def test_row_of_which_a_rate_has_no_result_fails(tables, tmp_path):
    fails_at = STAND_IN.replace('"--fails" in rest', "args.learning_rate == 0.03")
    (tmp_path / "experiments" / "emnist.py").write_text(fails_at)
    ended = finished(tables, "--only", "emnist_hinge", *CHOOSE, "0.03", "0.1")
    assert "emnist_hinge: no rate could be chosen, see the logs in" in ended.stdout
    assert ended.returncode == 1
    assert not (tmp_path / "results").exists()


def test_row_diverges_where_the_one_it_branches_from_did(tables, tmp_path):
    finished(tables, "--only", "emnist_pedcc_n1_tuned", *CHOOSE, "3", "0.1")
    path = tmp_path / "results" / "emnist_pedcc_n1_tuned_rate0.1_seed0.json"
    tried = json.loads(path.read_text())["choice"]["tried"]
    assert tried["3"]["diverged"]
    assert not tried["0.1"]["diverged"]


def test_row_without_any_result_to_choose_by_fails(tables, tmp_path):
    ended = finished(tables, "--only", "emnist_hinge", *CHOOSE, "0.03", "--fails")
    assert "emnist_hinge: no rate could be chosen, see the logs in" in ended.stdout
    assert ended.returncode == 1
    assert not (tmp_path / "results").exists()


def test_choosing_that_is_stopped_trains_nothing_more(tables, tmp_path):
    flags = ["--only", "emnist_hinge", *CHOOSE, "0.03", "--never-ends"]
    ended = finished(tables, *flags, "--minutes", "0.03")
    assert "0 of 1 runs are finished, 0 failed, 1 stopped" in ended.stdout
    assert "emnist_hinge: " not in ended.stdout
    assert not (tmp_path / "runs" / "emnist_hinge_rate0.03_seed0").exists()


def pid_of(folder, limit=20):
    """The process id that a stand-in leaves."""
    path, end = folder / "pid.json", time.monotonic() + limit
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return int(path.read_text())


@contextlib.contextmanager
def started(command):
    """A process, and those it starts, that do not outlive the test."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_paper_tables_end_their_children_at_a_signal(tables, tmp_path, number):
    flags = ["--jobs", "2", "--only", "emnist_pedcc_n1", "emnist_hinge", "--never-ends"]
    folders = [
        tmp_path / "runs" / f"emnist_{name}_seed0"
        for name in ("pedcc_n1_fixed", "hinge")
    ]
    with started([*tables, *flags]) as parent:
        children = [pid_of(folder) for folder in folders]
        parent.send_signal(number)
        told, _ = parent.communicate(timeout=20)
        for child in children:
            with pytest.raises(ProcessLookupError):
                os.kill(child, 0)
    assert parent.returncode == 128 + number
    assert "0 of 3 runs are finished, 0 failed, 2 stopped, 1 not started." in told


def test_paper_tables_end_their_children_after_the_minutes(tables, tmp_path):
    flags = ["--only", "emnist_pedcc_n1_tuned", "--never-ends", "--minutes", "0.03"]
    told = finished(tables, *flags).stdout
    assert "0 of 2 runs are finished, 0 failed, 1 stopped, 1 not started." in told
    child = pid_of(tmp_path / "runs" / "emnist_pedcc_n1_fixed_seed0")
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_paper_tables_count_rows_whose_parent_failed(tables):
    ended = finished(tables, "--only", "emnist_pedcc_n1", "emnist_hinge", "--fails")
    counts = "0 of 3 runs are finished, 2 failed, 0 stopped, 1 not started."
    assert counts in ended.stdout
    assert ended.returncode == 1


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("pedcc_n1_fixed", ["pedcc_n1_fixed"]),
        ("n2_tuned", ["pedcc_n2_fixed", "pedcc_n2_tuned"]),
        ("n1", ["pedcc_n1_fixed", "pedcc_n1_tuned", "modern_n1_fixed"]),
        ("cifar100_l_softmax_m2_seed1", ["l_softmax_m2"]),
    ],
)
def test_only_takes_rows_by_whole_words_and_what_they_branch_from(only, names):
    flags = ["--experiments", "cifar100", "--seeds", "1", "11", "--only", only]
    chosen = [name for name in rows_of(*flags) if name.endswith("_seed1")]
    assert chosen == [f"cifar100_{name}_seed1" for name in names]


def test_only_one_run():
    name = "cifar100_pedcc_n1_fixed_seed1"
    assert rows_of("--seeds", "0", "1", "11", "--only", name) == [name]


def test_paper_tables_tell_which_rows_they_make(tables):
    ended = finished(tables, "--only", "emnist_pedcc_n2_tuned")
    names = "emnist_pedcc_n2_fixed_seed0, emnist_pedcc_n2_tuned_seed0"
    assert ended.stdout.splitlines()[0] == f"2 runs: {names}"


def test_seeds_given_twice_make_their_rows_once():
    assert rows_of("--seeds", "0", "0") == rows_of()


def test_rows_are_those_of_the_paper_the_recipe_and_the_modern_one():
    rows = paper_tables.make_rows(["cifar100"], [0])
    flags = {tuple(row.flags[:-2]) for row in rows}
    ours = {"pedcc_am", "pedcc_n1_trained"}  # no rows of the paper's tables
    wanted = {
        tuple(each) for name, each in compare_losses.LOSSES.items() if name not in ours
    }
    assert wanted <= flags
    assert flags - wanted == {(*paper_tables.MODERN, "--fixed")}


def test_recipe_of_the_readme_is_one_in_all_programs():
    [row] = paper_tables.parse_args(
        ["--only", "pedcc_recipe", "--experiments", "cifar100"]
    ).rows
    assert row.name == "cifar100_pedcc_recipe_seed0"
    study = centroid_study.RECIPES[studies.RECIPE]
    table = compare_losses.LOSSES["pedcc_recipe"]
    ours, *others = [
        settings.parse(CIFAR100, each) for each in (row.flags, study, table)
    ]
    assert all(vars(ours) == vars(other) for other in others)
    assert (ours.centroids, ours.margin) == ("trained", 0.2)
    assert (ours.mse_weight, ours.mse_root) == (3.0, 1)
    assert "pedcc_recipe" in compare_losses.parse_args([]).losses


def test_pedcc_with_n_1_and_2_comes_first():
    names = [row.name for row in paper_tables.make_rows(["emnist"], [3])]
    kinds = ("n1_fixed", "n1_tuned", "n2_fixed", "n2_tuned")
    assert names[:4] == [f"emnist_pedcc_{kind}_seed3" for kind in kinds]


@pytest.mark.parametrize(
    ("jobs", "environment", "seen"),
    [
        ("2", {}, "false"),
        ("1", {}, None),
        ("2", {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}, "true"),
    ],
)
def test_several_jobs_share_a_gpu(
    tables, tmp_path, monkeypatch, jobs, environment, seen
):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    finished(tables, "--only", "emnist_hinge", "--jobs", jobs, **environment)
    path = tmp_path / "runs" / "emnist_hinge_seed0" / "environment.json"
    assert json.loads(path.read_text()).get("XLA_PYTHON_CLIENT_PREALLOCATE") == seen
