import json
import os
import re
import signal
import subprocess
import sys
import time

import centroid_study
import compare_losses
import comparison_flags
import feature_space
import keras
import numpy as np
import pytest
from compare_losses import LOSSES, Job, difference
from image_experiment import settings, training
from image_experiment.comparisons import best_rate
from image_experiment.data import BadInputError, load
from scipy import stats
from tensors import NO_JIT, only_once

pytestmark = pytest.mark.slow
QUICK = ["--epochs", "1", "--batch-size", "64", "--limit", "128", *NO_JIT]


def result_of(job, accuracy, diverged=False):
    """What a run of this job leaves, without the run."""
    experiment = compare_losses.EXPERIMENTS[job.dataset]
    args = settings.parse(experiment, job.flags)
    return {
        "experiment": experiment.name,
        "settings": settings.of_the_run(args),
        "accuracy": accuracy,
        "diverged": diverged,
        "seconds": 2.0,
        "epochs": args.epochs,
        "data": {
            "origin": "made.npz",
            "fingerprint": "1",
            "training_images": 9,
            "scored_images": 5,
            "scored_on": "held-out training images" if args.held_out else "test images",
        },
        "environment": {
            "cpus": 2,
            "cpu": "X",
            "devices": ["cpu"],
            "backend": keras.backend.backend(),
            keras.backend.backend(): "1",
            "keras": "3",
        },
    }


def fake(monkeypatch, accuracy_of, diverges=lambda job: False):
    """Replaces training by a function of the job; returns the list of jobs trained."""
    trained = []

    def train(job):
        trained.append(job)
        folder = compare_losses.pathlib.Path(job.folder)
        folder.mkdir(parents=True)
        text = json.dumps(result_of(job, accuracy_of(job), diverges(job)))
        (folder / "result.json").write_text(text)

    monkeypatch.setattr(compare_losses, "train", train)
    return trained


@pytest.mark.parametrize("number", [2, 3, 12])
def test_difference_is_paired_by_seed(number, rng):
    seeds = list(range(number))
    ours, base = (dict(enumerate(rng.normal(90, 1, number))) for _ in range(2))
    found = difference(ours, base, seeds)
    values = [ours[seed] - base[seed] for seed in seeds]
    assert found["mean"] == pytest.approx(np.mean(values))
    wanted = stats.ttest_rel(list(ours.values()), list(base.values()))
    np.testing.assert_allclose(found["interval"], wanted.confidence_interval(0.95))


def test_difference_of_one_seed_or_of_the_baseline_has_no_interval():
    base = {0: 1.0, 1: 2.0}
    assert difference(base, base, [0, 1]) is None
    assert difference({0: 2.0}, {0: 1.0}, [0]) == {"mean": 1.0, "interval": None}


def test_each_loss_takes_its_best_rate_on_held_out_images(monkeypatch, tmp_path):
    best = {"hinge": 0.03, "cross_entropy": 0.3}

    def accuracy(job):
        good = is_tuning(job) and job.rate == best[job.loss]
        return 0.6 if good else 0.5 if is_tuning(job) else 0.7

    fake(monkeypatch, accuracy)
    flags = ["--losses", "hinge", "cross_entropy", "--output-dir", str(tmp_path)]
    flags += ["--learning-rates", "0.03", "0.3", "--seeds", "0", "1"]
    assert compare_losses.main(flags) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert {loss: row["learning_rate"] for loss, row in table["rows"].items()} == best
    assert table["rows"]["hinge"]["accuracy"] == [70.0, 70.0]
    assert (tmp_path / "accuracy.png").stat().st_size > 5000


def test_settings_are_told_where_they_hold(monkeypatch, tmp_path):
    fake(monkeypatch, lambda job: 0.9)
    losses = ["pedcc_n1", "pedcc_n1_trained", "cross_entropy"]
    flags = ["--losses", *losses, "--seeds", "0", "1", "--learning-rates", "0.1"]
    assert compare_losses.main([*flags, "--output-dir", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    own = {loss: row["settings"] for loss, row in table["rows"].items()}
    assert own == {
        "pedcc_n1": {"loss": "pedcc", "centroids": "pedcc", "fixed": True},
        "pedcc_n1_trained": {"loss": "pedcc", "centroids": "trained", "fixed": False},
        "cross_entropy": {
            "loss": "cross_entropy",
            "centroids": "pedcc",
            "fixed": False,
        },
    }
    assert table["settings"]["mse_root"] == 1
    assert table["settings"]["epochs"] == 12
    assert not {"seed", *own["pedcc_n1"]} & set(table["settings"])


def test_settings_of_a_study_are_those_of_all_its_runs(monkeypatch, tmp_path):
    fake(monkeypatch, lambda job: 0.9)
    recipes = ["--recipes", "cross entropy", "frozen, margin 0.2"]
    flags = [*recipes, "--per-class", "5", "--output-dir", str(tmp_path)]
    assert centroid_study.main(flags) == 0
    study = json.loads((tmp_path / "study.json").read_text())
    assert not {"margin", "fixed", "loss", "seed"} & set(study["settings"])
    assert study["settings"]["imbalance"] == 1.0
    assert study["recipes"]["frozen, margin 0.2"] == "--fixed --margin 0.2"


def is_tuning(job):
    return "--held-out" in job.flags


def test_rate_that_diverged_is_not_chosen(monkeypatch, tmp_path):
    """Though its accuracy, which is of chance, be higher."""
    fake(
        monkeypatch,
        lambda job: 0.1 + 0.1 * (job.rate == 0.3),
        diverges=lambda job: is_tuning(job) and job.rate == 0.3 and job.seed == 101,
    )
    flags = ["--losses", "hinge", "--output-dir", str(tmp_path), "--seeds", "0"]
    flags += ["--learning-rates", "0.3", "0.03", "--tuning-seeds", "100", "101"]
    assert compare_losses.main(flags) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["rows"]["hinge"]["learning_rate"] == 0.03
    assert table["diverged"] == [
        {
            "loss": "hinge",
            "learning_rate": 0.3,
            "seed": 101,
            "scored_on": "held-out training images",
        }
    ]


def test_best_of_rates_that_all_diverged_is_chosen():
    results = {
        rate: [{"accuracy": accuracy, "diverged": True}]
        for rate, accuracy in ((0.03, 0.2), (0.1, 0.3))
    }
    assert best_rate(results) == 0.1


def test_diverged_run_is_named_below_the_table(monkeypatch, tmp_path, capsys):
    fake(monkeypatch, lambda job: 0.1, lambda job: job.seed == 1)
    flags = ["--losses", "hinge", "--output-dir", str(tmp_path), "--seeds", "0", "1"]
    assert compare_losses.main([*flags, "--learning-rates", "0.1"]) == 0
    note = "training stopped early: hinge, rate 0.1, seed 1 (test images)."
    assert note in (tmp_path / "table.md").read_text()
    assert "rate 0.1: 10.00 % of test images, diverged" in capsys.readouterr().out


def test_table_without_diverged_runs_has_no_note(monkeypatch, tmp_path):
    fake(monkeypatch, lambda job: 0.1)
    flags = ["--losses", "hinge", "--output-dir", str(tmp_path), "--seeds", "0"]
    assert compare_losses.main([*flags, "--learning-rates", "0.1"]) == 0
    assert "iverged" not in (tmp_path / "table.md").read_text()


def test_diverged_run_of_a_study_is_named_below_its_table(monkeypatch, tmp_path):
    fake(monkeypatch, lambda job: 0.1, lambda job: job.loss == "frozen, 5 per class")
    flags = ["--per-class", "5", "20", "--seeds", "0", "--output-dir", str(tmp_path)]
    assert centroid_study.main(flags) == 0
    [told] = json.loads((tmp_path / "study.json").read_text())["diverged"]
    assert (told["loss"], told["seed"]) == ("frozen, 5 per class", 0)
    note = "training stopped early: frozen, 5 per class, rate 0.05, seed 0 (test"
    assert note in (tmp_path / "study.md").read_text()


def test_finished_runs_are_not_repeated(monkeypatch, tmp_path, capsys):
    trained = fake(monkeypatch, lambda job: 0.9 if job.loss == "hinge" else 0.8)
    flags = ["--losses", "hinge", "cross_entropy", "--output-dir", str(tmp_path)]
    flags += ["--learning-rates", "0.1", "--seeds", "0"]
    assert compare_losses.main(flags) == 0
    assert compare_losses.main([*flags, "1"]) == 0
    assert [(job.loss, job.seed) for job in trained] == [
        ("hinge", 0),
        ("cross_entropy", 0),
        ("hinge", 1),
        ("cross_entropy", 1),
    ]
    assert (
        "| hinge | 90.00 +- 0.00 | +10.00 (+10.00 to +10.00) |"
        in capsys.readouterr().out
    )


def test_runs_of_other_settings_are_refused(monkeypatch, tmp_path, capsys):
    fake(monkeypatch, lambda job: 0.9)
    flags = ["--losses", "hinge", "--output-dir", str(tmp_path)]
    flags += ["--learning-rates", "0.1", "--seeds", "0"]
    assert compare_losses.main(flags) == 0
    assert compare_losses.main([*flags, "--epochs", "3"]) == 2
    assert "epochs was 12 and is 3" in capsys.readouterr().err


def test_failed_run_ends_with_its_message(tmp_path, capsys):
    flags = ["--dataset", "mnist", "--data-dir", str(tmp_path), "--seeds", "0"]
    code = compare_losses.main([*flags, "--output-dir", str(tmp_path / "out")])
    assert code == 2
    assert "no mnist.npz in" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("program", [compare_losses, centroid_study])
def test_mistyped_flag_is_told_before_training(
    program, jobs, tmp_path, monkeypatch, capsys
):
    trained = fake(monkeypatch, lambda job: 0.9)
    monkeypatch.setattr(compare_losses, "make_pool", None)
    flags = ["--seeds", "0", "--nonsense", "3", "--jobs", jobs]
    with pytest.raises(SystemExit) as ended:
        program.main([*flags, "--output-dir", str(tmp_path)])
    assert ended.value.code == 2
    assert "error: unrecognized arguments: --nonsense 3" in capsys.readouterr().err
    assert not trained


def test_flag_out_of_range_is_told_before_training(tmp_path, monkeypatch, capsys):
    trained = fake(monkeypatch, lambda job: 0.9)
    flags = ["--epochs", "0", "--output-dir", str(tmp_path)]
    assert compare_losses.main(flags) == 2
    told = "compare_losses: error: --epochs must be at least 1"
    assert told in capsys.readouterr().err
    assert not trained


def test_study_trains_each_recipe_for_the_same_steps(monkeypatch, tmp_path):
    trained = fake(monkeypatch, lambda job: 0.9 if "frozen" in job.loss else 0.8)
    flags = ["--per-class", "5", "100", "--seeds", "0", "1", "--steps", "600"]
    assert centroid_study.main([*flags, "--output-dir", str(tmp_path)]) == 0
    assert len(trained) == 2 * 2 * len(centroid_study.RECIPES)
    for job in trained:
        args = settings.parse(comparison_flags.DIGITS, job.flags)
        steps = args.epochs * (args.passes * args.limit // args.batch_size)
        assert steps == pytest.approx(600, rel=0.03)
        rate = 0.02 if "rate 0.02" in job.loss else 0.05
        assert job.rate == args.learning_rate == rate
        if "late" in job.loss:
            assert args.finetune_epoch == args.epochs * 7 // 12
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert rows["frozen"]["5"]["difference"]["mean"] == pytest.approx(10.0)
    assert rows["cross entropy"]["5"]["difference"] is None
    assert "| frozen | **90.0** +- 0.0 |" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "study.png").stat().st_size > 10_000
    assert " about 600 steps, seeds 0, 1;" in (tmp_path / "study.md").read_text()


@pytest.mark.parametrize("images", [10, 50, 940, 9400, 60_000])
@pytest.mark.parametrize("steps", [60, 600, 3200])
def test_schedule_has_the_steps_to_half_an_epoch(images, steps):
    epochs, passes = centroid_study.schedule_of(images, steps, 64)
    batches = images * passes // 64
    assert epochs == 1 or abs(epochs * batches - steps) <= batches / 2


def test_study_of_unequal_classes_takes_its_steps(monkeypatch, tmp_path):
    trained = fake(monkeypatch, lambda job: 0.9)
    flags = ["--per-class", "100", "--seeds", "0", "--steps", "600"]
    flags += ["--imbalance", "50", "--output-dir", str(tmp_path)]
    assert centroid_study.main(flags) == 0
    for job in trained:
        args = settings.parse(comparison_flags.DIGITS, job.flags)
        images = load(comparison_flags.DIGITS.source, limit=1000, imbalance=50)
        assert (args.limit, args.imbalance) == (1000, 50)
        batches = args.passes * len(images.y_train) // args.batch_size
        assert args.epochs * batches == pytest.approx(600, rel=0.05)


def test_study_takes_steps_for_each_number_of_images(monkeypatch, tmp_path):
    trained = fake(monkeypatch, lambda job: 0.9)
    flags = ["--per-class", "5", "100", "--seeds", "0", "--steps", "300", "900"]
    assert centroid_study.main([*flags, "--output-dir", str(tmp_path)]) == 0
    for job in trained:
        args = settings.parse(comparison_flags.DIGITS, job.flags)
        steps = args.epochs * (args.passes * args.limit // args.batch_size)
        assert steps == pytest.approx({50: 300, 1000: 900}[args.limit], rel=0.05)
    assert " about 300, 900 steps, seeds 0;" in (tmp_path / "study.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["--steps", "1", "2"], "one for each of --per-class"),
        (["--per-class", "5", "0"], "--per-class must be at least 1"),
        (["--per-class", "5", "5"], "--per-class must be different numbers"),
        (["--imbalance", "0.5"], "--imbalance must be at least 1"),
        (["--epochs", "2"], "--epochs cannot go to every run: it follows from --per"),
        (["--limit=9"], "--limit cannot go to every run: it follows from --per-class"),
        (["--seed", "1"], "--seed cannot go to every run: name all with --seeds"),
        (["--loss", "hinge"], "--loss cannot go to every run"),
    ],
)
def test_study_refuses_wrong_numbers(flags, message, capsys):
    with pytest.raises(SystemExit):
        centroid_study.main(flags)
    assert message in capsys.readouterr().err


@only_once
@pytest.mark.parametrize(
    "loss", [name for name in LOSSES if not name.endswith(("m2", "n2", "n3", "tuned"))]
)
def test_every_loss_takes_a_step_down(loss, tmp_path):
    experiment = comparison_flags.DIGITS
    flags = [*LOSSES[loss], *QUICK, "--learning-rate", "0.01"]
    args = settings.parse(experiment, flags)
    images = load(experiment.source, limit=128)
    model = training.make_model(experiment, args, images)
    before = model.evaluate(images.x_train, images.y_train, verbose=0, return_dict=True)
    model.fit(images.x_train, images.y_train, epochs=10, verbose=0)
    after = model.evaluate(images.x_train, images.y_train, verbose=0, return_dict=True)
    assert after["loss"] < before["loss"]
    assert after["accuracy"] > 0.5


@only_once
def test_two_jobs_at_once_give_what_one_gives(tmp_path):
    flags = ["--losses", "cross_entropy", "pedcc_n1_tuned", "--seeds", "0"]
    flags += ["--learning-rates", "0.1", *QUICK, "--finetune-epoch", "0"]
    tables = []
    for jobs in ("1", "2"):
        folder = tmp_path / jobs
        argv = [*flags, "--jobs", jobs, "--output-dir", str(folder)]
        assert compare_losses.main(argv) == 0
        tables.append(json.loads((folder / "table.json").read_text())["rows"])
    for loss, row in tables[0].items():
        assert tables[1][loss]["accuracy"] == pytest.approx(row["accuracy"], abs=1.0)


@only_once
def test_workers_share_a_gpu(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "no")  # as told
    names = ["XLA_PYTHON_CLIENT_PREALLOCATE", "TF_FORCE_GPU_ALLOW_GROWTH"]
    with compare_losses.make_pool(1) as pool:
        assert list(pool.map(os.getenv, names)) == ["false", "no"]
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ


WATCHED = """
import multiprocessing, os, time
from compare_losses import end_with_parent

def work():
    end_with_parent()
    time.sleep(60)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


@only_once
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "watched.py").write_text(WATCHED)
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "watched.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as parent:
        worker = int(parent.stdout.readline())
        time.sleep(10)  # it imports Keras
        parent.kill()
    for _ in range(100):
        if not is_running(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by ten seconds")


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_seed_given_twice_counts_once(monkeypatch, tmp_path):
    trained = fake(monkeypatch, lambda job: 0.9)
    flags = ["--losses", "hinge", "hinge", "--learning-rates", "0.1", "0.1"]
    flags += ["--seeds", "0", "0", "1", "--output-dir", str(tmp_path)]
    assert compare_losses.main(flags) == 0
    assert [job.seed for job in trained] == [0, 1]
    assert json.loads((tmp_path / "table.json").read_text())["seeds"] == [0, 1]


ONE = ["--losses", "hinge", "--learning-rates", "0.1", "--seeds"]


@pytest.mark.parametrize(
    ("part", "name", "told"),
    [
        ("environment", "backend", "backend was 'x' and is"),
        (None, "experiment", "experiment was 'x' and is 'digits'"),
    ],
)
def test_run_of_another_kind_is_not_taken(
    monkeypatch, capsys, tmp_path, part, name, told
):
    fake(monkeypatch, lambda job: 0.9)
    flags = [*ONE, "0", "--output-dir", str(tmp_path)]
    assert compare_losses.main(flags) == 0
    path = tmp_path / "test" / "hinge_rate0.1_seed0" / "result.json"
    result = json.loads(path.read_text())
    (result[part] if part else result)[name] = "x"
    path.write_text(json.dumps(result))
    assert compare_losses.main(flags) == 2
    error = capsys.readouterr().err
    assert "compare_losses: error: The run in " in error
    assert told in error


def change_seed_1(folder, part, name, value):
    """Changes `result.json` of a run that `ONE` has made."""
    path = folder / "test" / "hinge_rate0.1_seed1" / "result.json"
    result = json.loads(path.read_text())
    result[part][name] = value
    path.write_text(json.dumps(result))


def test_runs_of_other_images_are_not_compared(monkeypatch, capsys, tmp_path):
    fake(monkeypatch, lambda job: 0.9)
    flags = [*ONE, "0", "1", "--output-dir", str(tmp_path)]
    assert compare_losses.main(flags) == 0
    change_seed_1(tmp_path, "data", "fingerprint", "2")
    assert compare_losses.main(flags) == 2
    error = capsys.readouterr().err
    assert re.search("seed1 has other images, of made.npz, than that in .*seed0", error)


def test_what_differed_between_runs_is_told(monkeypatch, tmp_path):
    fake(monkeypatch, lambda job: 0.9)
    flags = [*ONE, "0", "1", "--output-dir", str(tmp_path)]
    assert compare_losses.main(flags) == 0
    change_seed_1(tmp_path, "environment", "cpus", 1)
    assert compare_losses.main(flags) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["environment"]["cpus"] == [2, 1]
    assert table["environment"]["keras"] == "3"
    assert (
        "; 2 or 1 CPU cores (X), devices cpu, " in (tmp_path / "table.md").read_text()
    )


@pytest.mark.parametrize("flag", ["--seed", "--learning-rate=0.1"])
def test_flag_that_differs_from_run_to_run_is_refused(flag, capsys):
    with pytest.raises(SystemExit):
        compare_losses.main([flag, "1"])
    name = flag.partition("=")[0]
    assert f"{name} cannot go to every run: did you mean {name}s?" in (
        capsys.readouterr().err
    )


def test_one_loss_for_every_run_is_refused(capsys):
    with pytest.raises(SystemExit):
        compare_losses.main(["--loss", "hinge"])
    told = "--loss cannot go to every run: did you mean --losses?"
    assert told in capsys.readouterr().err


def begin_and_fail(folder):
    """Stands in for a run; leaves a file as it begins."""
    path = folder / str(os.getpid())
    path.write_text("begun" + (path.read_text() if path.exists() else ""))
    time.sleep(0.2)
    raise BadInputError("no such file")


def test_error_ends_the_jobs_that_wait(monkeypatch, tmp_path):
    monkeypatch.setattr(compare_losses, "run_one", begin_and_fail)
    with pytest.raises(BadInputError, match="no such file"):
        list(compare_losses.as_ended(20 * [tmp_path], 2))
    begun = "".join(path.read_text() for path in tmp_path.iterdir())
    assert 1 <= begun.count("begun") < 10


@pytest.mark.parametrize(
    ("flags", "recorded"),
    [
        ("--jobs 1", ""),
        ("--jobs 4", " --jobs 4"),
        ("--jobs=4 --epochs 3", " --jobs 4 --epochs 3"),
        ("--data-dir /me --output-dir /me --limit 9", " --limit 9"),
        ("--data-dir=/me --output-dir=/me --limit=9", " --limit=9"),
        ("--lfw /me --train=/me", " --lfw FOLDER --train=FOLDER"),
    ],
)
def test_recorded_command_has_no_folders_of_this_machine(flags, recorded):
    args = compare_losses.parse_args(flags.split())
    assert args.command == f"python experiments/compare_losses.py{recorded}"


def test_commands_of_all_scripts_are_recorded_alike():
    flags = ["--data-dir=/me", "--dataset", "mnist", "--width", "3"]
    args = feature_space.parse_args(flags)
    wanted = "python experiments/feature_space.py --dataset mnist --width 3"
    assert args.command == wanted
    args = centroid_study.parse_args([*flags, "--recipes", "late at 0.001"])
    assert args.command == (
        "python experiments/centroid_study.py --dataset mnist "
        "--recipes 'late at 0.001' --width 3"
    )


def test_job_names_its_folder_by_what_it_is():
    args = compare_losses.parse_args(["--output-dir", "x"])
    job = compare_losses.make_job(args, "hinge", 3, 0.1, "test")
    assert isinstance(job, Job)
    assert job.folder == "x/test/hinge_rate0.1_seed3"
