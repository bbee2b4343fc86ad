"""The programs of `benchmarks/`, on next to nothing."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import centroid_study
import compare_losses
import keras
import numpy as np
import pytest
import studies
from cifar100 import CIFAR100
from image_experiment import settings
from image_experiment.data import Images
from tensors import NO_JIT

import keras_pedcc
from benchmarks import (
    gpu_classes,
    many_classes,
    paper_tables,
    peers,
    results_table,
    sampled_classes,
    throughput,
    walsh_hadamard,
)

ROOT = pathlib.Path(__file__).parents[1]
# Stands in for an example: tells its process id and environment, and ends at once, or
# fails, or does not end.
EXAMPLE = """
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


# results_table.py


def run_of(experiment, *flags, origin, scored_on="test images", **changed):
    """What `result.json` of a run with these flags would say."""
    args = settings.parse(results_table.EXPERIMENTS[experiment], flags)
    return {
        "experiment": experiment,
        "settings": {**settings.of_the_run(args), **changed},
        "data": {"origin": origin, "training_images": 50_000, "scored_on": scored_on},
        "accuracy": 0.5,
        "images_per_second": 100.0,
        "environment": {
            "backend": "jax",
            "devices": ["CPU"],
            "cpus": 2,
            "cpu": "a CPU",
            **dict.fromkeys(("jax", "keras", "numpy"), "1.0"),
        },
    }


def cells_of(run):
    """Cells of the one row that a run makes."""
    row = results_table.table([run]).splitlines()[2]
    return [cell.strip() for cell in row.strip("|").split("|")]


def paper_of(experiment, *flags, **options):
    return cells_of(run_of(experiment, *flags, **options))[4]


def test_table_refuses_held_out_images():
    run = run_of(
        "cifar100", origin="cifar100.npz", scored_on="held-out training images"
    )
    with pytest.raises(ValueError, match="scored_on='held-out training images'"):
        results_table.table([run])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jit", False),
        ("jit", True),
        ("mixed_precision", "bfloat16"),
        ("strategy", "mirrored"),
        ("logical_cpus", 2),
        ("centroid_seed", 3),
        ("seed", 3),
    ],
)
def test_paper_s_figure_stays_with_settings_of_chance_and_hardware(name, value):
    changed = {"origin": "cifar100.npz", name: value}
    assert paper_of("cifar100", "--fixed", **changed) == "72.71 %"


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-feature-norm"],
        ["--no-flip"],
        ["--epochs", "119"],
        ["--limit", "49999"],
        ["--margin", "0.4"],
        ["--finetune-rate", "0.01"],
        ["--centroids", "trained"],
        ["--mse-root", "4"],
    ],
)
def test_paper_s_figure_goes_with_settings_of_the_recipe(flags):
    assert paper_of("cifar100", *flags, origin="cifar100.npz") == "-"


@pytest.mark.parametrize(
    ("flags", "emnist", "cifar100"),
    [
        (["--loss", "hinge"], "88.22 %", "67.10 %"),
        (["--loss", "cross_entropy"], "88.42 %", "69.02 %"),
        (["--loss", "l_softmax", "--multiple", "2"], "88.69 %", "70.05 %"),
        (["--loss", "l_softmax", "--multiple", "4"], "88.81 %", "70.47 %"),
        (["--loss", "a_softmax", "--multiple", "4"], "88.83 %", "70.86 %"),
        (["--loss", "a_softmax", "--multiple", "2"], "-", "-"),
        (["--loss", "center"], "89.21 %", "71.01 %"),
        (["--loss", "am_softmax"], "89.45 %", "71.43 %"),
        (["--loss", "arcface"], "89.52 %", "71.76 %"),
        (["--loss", "pedcc_am"], "-", "-"),
        (["--mse-root", "1", "--fixed"], "89.60 %", "72.71 %"),
        (["--mse-root", "1"], "89.83 %", "72.66 %"),
        (["--mse-root", "2", "--fixed"], "89.47 %", "73.03 %"),
        (["--mse-root", "2"], "89.66 %", "73.23 %"),
        (["--mse-root", "3", "--fixed"], "89.51 %", "71.59 %"),
        (["--mse-root", "3"], "89.73 %", "71.89 %"),
    ],
)
def test_paper_s_figures_are_those_of_its_tables(flags, emnist, cifar100):
    assert paper_of("emnist", *flags, origin="emnist_balanced.npz") == emnist
    origin = "tensorflow-datasets cifar100/3.0.2"
    assert paper_of("cifar100", *flags, origin=origin) == cifar100


@pytest.mark.parametrize(
    ("origin", "figure"),
    [
        ("tensorflow-datasets emnist/balanced/3.1.0", "89.83 %"),
        ("emnist_balanced.npz", "89.83 %"),
        ("emnist47.npz", "-"),
        ("tensorflow-datasets emnist/byclass/3.1.0", "-"),
    ],
)
def test_table_1_stands_beside_the_official_images_only(origin, figure):
    assert paper_of("emnist", origin=origin) == figure


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "PEDCC n=1, fine-tuned"),
        (["--fixed", "--mse-root", "2"], "PEDCC n=2, fixed"),
        (["--finetune-epoch", "119"], "PEDCC n=1, fine-tuned"),
        (["--finetune-epoch", "120"], "PEDCC n=1, fixed"),
        (["--centroids", "trained"], "PEDCC n=1, trained from the start"),
        (["--centroids", "random"], "PEDCC n=1, random, trained from the start"),
        (["--loss", "pedcc_am"], "PEDCC-AM, fine-tuned"),
        (["--loss", "pedcc_am", "--fixed"], "PEDCC-AM, fixed"),
        (["--loss", "pedcc_am", "--centroids", "trained"], "PEDCC-AM, trained from"),
        (["--loss", "l_softmax", "--multiple", "2"], "L-Softmax m=2"),
        (["--loss", "cross_entropy"], "cross entropy"),
    ],
)
def test_row_says_what_became_of_the_centroids(flags, name):
    cells = cells_of(run_of("cifar100", *flags, origin="cifar100.npz"))
    assert cells[1].startswith(name)


def test_run_from_before_a_setting_was_there_had_its_default():
    run = run_of("cifar100", origin="cifar100.npz")
    del run["settings"]["centroids"]
    assert cells_of(run)[1] == "PEDCC n=1, fine-tuned"
    assert cells_of(run)[4] == "72.66 %"


# paper_tables.py


@pytest.fixture
def tables(tmp_path):
    """Command for `paper_tables.py` in a folder where the examples are stand-ins."""
    for folder in ("benchmarks", "examples"):
        (tmp_path / folder).mkdir()
    script = tmp_path / "benchmarks" / "paper_tables.py"
    shutil.copy(ROOT / "benchmarks" / "paper_tables.py", script)
    shared = tmp_path / "examples" / "image_experiment"
    shutil.copytree(ROOT / "examples" / "image_experiment", shared)
    for name in ("cifar100", "emnist"):
        (tmp_path / "examples" / f"{name}.py").write_text(EXAMPLE)
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
    fails_at = EXAMPLE.replace('"--fails" in rest', "args.learning_rate == 0.03")
    (tmp_path / "examples" / "emnist.py").write_text(fails_at)
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


# throughput.py


def test_throughput_tells_in_one_line_that_there_are_no_images(tmp_path, capsys):
    assert throughput.main(["--data-dir", str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("throughput: error: no cifar100.npz in ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("flag", ["--rounds", "--steps"])
def test_throughput_refuses_to_measure_nothing(flag, capsys):
    with pytest.raises(SystemExit):
        throughput.main([flag, "0"])
    assert "--rounds and --steps must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["pedcc", "cross_entropy"])
def test_keras_models_of_throughput_log_accuracy_alone(loss, rng, monkeypatch):
    small = dataclasses.replace(CIFAR100, stem=2, blocks=((1, 2),))
    monkeypatch.setattr(throughput, "CIFAR100", small)
    x = rng.integers(0, 256, (4, 32, 32, 3), dtype="uint8")
    images = Images(x, np.arange(4), x, np.arange(4), "noise", num_classes=100)
    args = settings.parse(small, ["--loss", loss, "--dim", "99", *NO_JIT])
    model = throughput.keras_model(args, images)
    logs = model.train_on_batch(x, np.arange(4), return_dict=True)
    assert set(logs) == {"accuracy", "loss"}
    assert isinstance(model, keras_pedcc.PEDCCModel) == (loss == "pedcc")


def test_batches_are_made_ahead_in_order_by_a_thread():
    threads = set()

    def make(number):
        threads.add(threading.get_ident())
        asked.append(number)
        return number

    asked = []
    made = throughput.made_ahead(make, 7, ahead=3)
    assert next(made) == 0
    assert list(made) == [1, 2, 3, 4, 5, 6]
    assert asked == [0, 1, 2, 3, 4, 5, 6]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


# many_classes.py


def growth(**changed):
    """A result with two sizes of each kind and every head."""
    sizes = [(1_000, 128), (131_072, 128), (50_000, 128), (50_000, 256)]
    rows = [
        {
            "head": head,
            "classes": classes,
            "batch_size": batch,
            "milliseconds": classes * batch / 1e5,
            "growth_mib": 0.0 if head == "streaming" else classes * batch / 1e6,
        }
        for head in many_classes.HEADS
        for classes, batch in sizes
    ]
    return {"batch_size": 128, "batch_classes": 50_000, "rows": rows} | changed


def test_growth_is_drawn_from_a_file(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(growth()))
    figure = tmp_path / "growth.png"
    many_classes.main(
        ["--draw", str(tmp_path / "result.json"), "--figure", str(figure)]
    )
    assert figure.stat().st_size > 10_000


def test_growth_without_batches_has_one_column(tmp_path):
    rows = [row for row in growth()["rows"] if row["batch_size"] == 128]
    one, other = many_classes.panels(growth(rows=rows))
    assert {row["classes"] for row in one[2]} == {1_000, 50_000, 131_072}
    assert {row["batch_size"] for row in other[2]} == {128}
    many_classes.draw(growth(rows=rows), tmp_path / "growth.png")
    with pytest.raises(SystemExit, match="nothing grows"):
        many_classes.draw(growth(rows=rows[:1]), tmp_path / "nothing.png")


def test_one_size_grows_while_the_other_stays():
    flags = ["--classes", "10", "20", "--batch-size", "4", "8", "--batch-classes", "20"]
    points = many_classes.points(many_classes.parse_args(flags))
    assert points == [(10, 4), (20, 4), (20, 8)]


def test_ratio_is_to_softmax_of_the_same_size():
    rows = growth()["rows"]
    mine = rows[-1] | {"milliseconds": 3 * rows[-1]["milliseconds"]}
    assert many_classes.ratio(mine, rows)["milliseconds"] == pytest.approx(3)
    assert many_classes.ratio(mine | {"batch_size": 7}, rows) is None


@pytest.mark.parametrize(
    ("number", "text"), [(500, "500"), (131_072, "131k"), (1e6, "1M")]
)
def test_sizes_on_the_axis_are_short(number, text):
    assert many_classes.short(number) == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "9", "1"], "--classes must be at least 2"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--draw", "result.json"], "--draw needs --figure"),
    ],
)
def test_many_classes_refuses(flags, message, capsys):
    with pytest.raises(SystemExit):
        many_classes.parse_args(flags)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
@pytest.mark.parametrize("centroids", many_classes.CENTROIDS)
def test_many_classes_measures_each_case_in_a_process(tmp_path, centroids):
    path = tmp_path / "result.json"
    flags = ["--heads", "streaming", "--classes", "300", "--dim", "16"]
    flags += ["--batch-size", "4", "--steps", "1", "--rounds", "1"]
    flags += ["--centroids", centroids, "--centroids-dtype", "bfloat16"]
    many_classes.main([*flags, "--result", str(path)])
    [row] = json.loads(path.read_text())["rows"]
    assert row["milliseconds"] > 0
    assert row["peak_mib"] > 50


# peers.py

needs_torch = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the peers are of PyTorch"
)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="there they run")
def test_peers_tell_which_backend_they_need(capsys):
    with pytest.raises(SystemExit):
        peers.parse_args([])
    assert "set KERAS_BACKEND=torch" in capsys.readouterr().err


@needs_torch
@pytest.mark.parametrize("name", ["plain", "metric_learning"])
def test_peers_are_am_softmax(name):
    import torch

    if name == "metric_learning":
        pytest.importorskip("pytorch_metric_learning")
    loss, [weight] = peers.peers(7, 16)[name]
    features, labels = torch.randn(5, 16), torch.arange(5)
    rows = weight if name == "plain" else weight.T
    cosines = torch.nn.functional.normalize(features) @ (
        torch.nn.functional.normalize(rows).T
    )
    right = keras_pedcc.losses.am_softmax_loss(
        labels, cosines, scale=peers.SCALE, margin=peers.MARGIN
    )
    found = float(loss(features, labels).detach())
    np.testing.assert_allclose(found, float(right.mean().detach()), rtol=1e-5)


@needs_torch
def test_step_of_peers_trains_what_is_trained_and_gives_the_slope():
    import torch

    features, labels = torch.randn(5, 16), torch.arange(5)
    for loss, weights in (peers.plain(7, 16), peers.pedcc(7, 16, trainable=True)):
        before = weights[0].detach().clone()
        slope = peers.training_step(loss, weights)(features, labels)
        assert slope.shape == features.shape
        assert slope.abs().max() > 0
        assert (weights[0].detach() != before).any()
    assert peers.pedcc(7, 16)[1] == []


@needs_torch
def test_peers_write_what_they_measure(tmp_path):
    path = tmp_path / "peers.json"
    flags = ["--num-classes", "7", "--dim", "16", "--batch", "4", "--steps", "2"]
    peers.main([*flags, "--trained", "--result", str(path)])
    [row] = json.loads(path.read_text())["rows"]
    assert {"plain", "pedcc", "pedcc_trained"} <= set(row["milliseconds"])
    assert "pedcc" not in row["pedcc_over"]


@needs_torch
def test_missing_peer_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    assert set(peers.peers(7, 16)) == {"plain"}
    assert "pip install pytorch-metric-learning" in capsys.readouterr().err


# walsh_hadamard.py


@pytest.fixture
def transformed(rng):
    """Signs, the matrix that they stand for, features and slopes."""
    signs = np.where(rng.random((8, 16)) < 0.5, -1, 1).astype("int8")
    matrix = walsh_hadamard.hadamard(16) * signs[:, None] / 4
    x = rng.standard_normal((16, 5)).astype("float32")
    slopes = rng.standard_normal((128, 5)).astype("float32")
    return signs, matrix.reshape(128, 16), x / np.linalg.norm(x, axis=0), slopes


@pytest.mark.parametrize("name", ["half_product", "kronecker", "butterflies"])
def test_transforms_are_products_with_the_matrix(transformed, name):
    signs, matrix, x, slopes = transformed
    way = walsh_hadamard.WAYS[name](signs)
    x, slopes = map(keras.ops.convert_to_tensor, (x, slopes))
    found = keras.ops.convert_to_numpy(way.cosines(way.held, x))
    np.testing.assert_allclose(found, matrix @ np.asarray(x), atol=1e-6)
    found = keras.ops.convert_to_numpy(way.pull(way.held, slopes))
    np.testing.assert_allclose(found, matrix.T @ np.asarray(slopes), atol=1e-5)


@pytest.mark.parametrize("name", walsh_hadamard.WAYS)
@pytest.mark.parametrize("size", [2, 8])
def test_blocks_of_bases_give_the_sum_over_classes_and_its_slope(
    transformed, name, size
):
    signs, matrix, x, _ = transformed
    way = walsh_hadamard.WAYS[name](signs)
    tensor = keras.ops.convert_to_tensor(x)
    total, slope = walsh_hadamard.streaming(way, way.held, tensor, size)
    vectors = np.concatenate([matrix, -matrix])
    powers = np.exp(walsh_hadamard.SCALE * (vectors @ x).astype("float64"))
    total, slope = map(keras.ops.convert_to_numpy, (total, slope))
    np.testing.assert_allclose(total, powers.sum(axis=0), rtol=1e-4)
    right = walsh_hadamard.SCALE * vectors.T @ powers
    np.testing.assert_allclose(slope, right, rtol=1e-4, atol=1e-4 * np.abs(right).max())


def test_ways_to_kerdock_s_cosines_agree(tmp_path):
    path = tmp_path / "result.json"
    flags = ["--dim", "16", "--batch", "3", "--steps", "1", "--result", str(path)]
    walsh_hadamard.main(flags)
    rows = json.loads(path.read_text())["rows"]
    assert [row["task"] for row in rows] == ["forward", "gradient", "streaming"]
    for row in rows:
        assert max(row["largest_error"].values()) < 1e-4


def test_pairs_show_the_characters_of_their_class(rng):
    # The image of a character is its number, and another digit for each writer.
    y = np.repeat(np.arange(47), 3)
    x = np.tile((10 * y + np.arange(141) % 3)[:, None, None, None], (1, 2, 2, 1))
    images, labels = sampled_classes.pairs(x, y, 2, rng)
    assert images.shape == (2 * 47**2, 2, 4, 1)
    assert np.bincount(labels).tolist() == [2] * 47**2
    shown = images[:, 0, [0, 3], 0] // 10
    assert (47 * shown[:, 0] + shown[:, 1] == labels).all()
    assert len(np.unique(images % 10)) == 3


def test_rates_are_compared_seed_by_seed():
    accuracies = {(1.0, 0): 0.5, (1.0, 1): 0.7, (0.1, 0): 0.4, (0.1, 1): 0.5}
    runs = [
        {"rate": rate, "seed": seed, "accuracy": accuracy}
        for (rate, seed), accuracy in accuracies.items()
    ]
    whole, tenth = sampled_classes.rows(runs)
    assert whole["minus_rate_1"] == {"mean": 0.0, "deviation": 0.0}
    assert tenth["accuracy"]["mean"] == pytest.approx(0.45)
    assert tenth["minus_rate_1"]["mean"] == pytest.approx(-0.15)
    assert tenth["minus_rate_1"]["deviation"] == pytest.approx(0.05 * 2**0.5)
    assert sampled_classes.rows(runs[2:])[0]["minus_rate_1"] is None


def test_sampling_benchmark_refuses_arguments(capsys):
    for flags, message in (
        (["--rates", "0"], "--rates must lie in"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--task", "faces"], "needs --data-dir"),
    ):
        with pytest.raises(SystemExit):
            sampled_classes.parse_args(flags)
        assert message in capsys.readouterr().err


# gpu_classes.py


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the quicker one")
def test_cases_are_measured_over_the_floor(tmp_path):
    path = tmp_path / "result.json"
    flags = ["--classes", "300", "--dim", "16", "--batch", "4", "--steps", "1"]
    gpu_classes.main([*flags, "--result", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["case"] for row in rows] == list(gpu_classes.CASES)
    assert rows[0]["over_floor"] == 1
    assert all(row["milliseconds"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the quicker one")
def test_a_case_that_does_not_fit_is_told(capsys):
    gpu_classes.main(["--cases", "kerdock", "--classes", "20", "--dim", "16"])
    row = json.loads(capsys.readouterr().out)
    assert row["milliseconds"] is None
    assert "num_classes=20" in row["failed"]


# studies.py


def study_of(rows, **kwargs):
    """What `centroid_study.py` writes, of means; all are as far from cross entropy."""
    difference = {"mean": 1.5, "interval": [-1, 4]}
    return {
        "dataset": "emnist47",
        "steps": [600],
        "per_class": [5],
        "data": {"scored_on": "test images"},
        "settings": {"imbalance": 1.0, "pad": 0},
        "rows": {
            name: {"5": {"mean": mean, "difference": difference}}
            for name, mean in rows.items()
        },
    } | kwargs


def test_summary_has_a_row_for_each_rate():
    recipe = studies.RECIPE
    means = {"cross entropy": 50.0, "frozen": 40.0, recipe: 45.0}
    means |= {"frozen, rate 0.02": 41.0, f"{recipe}, rate 0.02": 51.5}
    assert studies.summary([study_of(means)]).splitlines()[2:] == [
        "| emnist47 | 5 | 600 | **50.0** | - | 40.0 | 45.0 | +1.5 (-1.0 to +4.0) |",
        "| emnist47, rate 0.02 | 5 | 600 | 50.0 | - | 41.0 | **51.5** "
        "| +1.5 (-1.0 to +4.0) |",
    ]


def test_summary_is_of_test_images_and_of_the_recipe():
    means = {"cross entropy": 50.0, studies.RECIPE: 45.0}
    held_out = study_of(means, data={"scored_on": "held-out training images"})
    without = study_of({"cross entropy": 50.0, "frozen": 45.0})
    alone = study_of({studies.RECIPE: 45.0})
    assert studies.rows([held_out, without, alone]) == []


def test_summary_of_one_seed_has_no_interval():
    study = study_of({"cross entropy": 50.0, studies.RECIPE: 45.0})
    study["rows"][studies.RECIPE]["5"]["difference"]["interval"] = None
    [line] = studies.summary([study]).splitlines()[2:]
    assert line == "| emnist47 | 5 | 600 | **50.0** | - | - | 45.0 | +1.5 |"


def test_summary_tells_the_fewest_images_of_unequal_classes():
    study = study_of({"cross entropy": 50.0, studies.RECIPE: 45.0})
    study["settings"]["imbalance"] = 2.5
    assert "unequal 2.5 to 1 | 5 to 2 | 600 |" in studies.summary([study])


@pytest.mark.parametrize(
    ("dataset", "settings", "images"),
    [
        ("emnist47", {"imbalance": 50.0, "pad": 0}, "emnist47, unequal 50 to 1"),
        ("emnist47", {"imbalance": 1.0, "pad": 2}, "emnist47, shifted"),
        ("cifar100", {"imbalance": 1.0, "pad": 4}, "cifar100"),
    ],
)
def test_summary_names_what_was_done_to_the_images(dataset, settings, images):
    means = {"cross entropy": 50.0, studies.RECIPE: 45.0}
    [row] = studies.rows([study_of(means, dataset=dataset, settings=settings)])
    assert row["images"] == images
