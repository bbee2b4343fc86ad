"""The programs of `benchmarks/` around the image experiments, without training."""

import pytest
from image_experiment import settings

from benchmarks import results_table

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
