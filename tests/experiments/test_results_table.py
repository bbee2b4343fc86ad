"""Recorded runs, and the tables of docs/results/ made of them."""

import pytest
import results_table
import studies
from cifar100 import CIFAR100
from image_experiment import settings

pytestmark = pytest.mark.slow


def test_results_are_those_of_the_recorded_runs():
    for path, made in results_table.pages().items():
        text = path.read_text()
        assert results_table.with_blocks(text, made) == text


def test_runs_of_one_recipe_make_one_row():
    run = results_table.read("images")[0]
    other = {**run, "accuracy": run["accuracy"] + 0.02}
    other["settings"] = {**run["settings"], "seed": 1}
    made = results_table.table([run, other])
    mean = 100 * run["accuracy"] + 1
    assert f"| {mean:.2f} % +- 1.41 | 0, 1 |" in made
    assert made.count("| `") == 1


def test_paper_s_figure_stands_beside_runs_of_its_size_only():
    run = next(r for r in results_table.read("images") if r["experiment"] == "cifar100")
    assert "72.71" not in results_table.table([run])
    defaults = settings.of_the_run(settings.parse(CIFAR100, ["--fixed"]))
    assert "| 72.71 % |" in results_table.table([{**run, "settings": defaults}])


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
