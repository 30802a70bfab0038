"""The flags that several commands share, each defined once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

NETWORKS = "Networks"
DATA = "Data"
TRAINING = "Training"
OUTPUT = "Output"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="The network, by its timm name (tutelage list models).",
        rich_help_panel=NETWORKS,
    ),
]
Student = Annotated[
    str | None,
    typer.Option(
        "--student",
        metavar="NAME",
        help="The network to train, by its timm name (tutelage list models).",
        rich_help_panel=NETWORKS,
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher", metavar="NAME", help="The frozen network to learn from.", rich_help_panel=NETWORKS
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights of the model or student; without them training starts afresh.",
        rich_help_panel=NETWORKS,
    ),
]
TeacherWeights = Annotated[
    str | None,
    typer.Option(
        "--teacher-weights", metavar="FILE", help="Weights of the teacher.", rich_help_panel=NETWORKS
    ),
]
Pretrained = Annotated[
    bool | None,
    typer.Option(
        "--pretrained",
        help="Start from timm's pretrained weights, or from --weights in their place; a classifier for other "
        "classes than the data's is dropped.",
        show_default=False,
        rich_help_panel=NETWORKS,
    ),
]
TeacherPretrained = Annotated[
    bool | None,
    typer.Option(
        "--teacher-pretrained",
        help="Take timm's pretrained weights for the teacher.",
        show_default=False,
        rich_help_panel=NETWORKS,
    ),
]
ResetHead = Annotated[
    bool | None,
    typer.Option(
        "--reset-head",
        help="Drop the classifier of the weights and train a new one.",
        show_default=False,
        rich_help_panel=NETWORKS,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="How to train (tutelage list methods).",
        show_default="kd; none for train, hssakd for mutual",
        rich_help_panel=TRAINING,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help="The dataset (tutelage list datasets).",
        show_default="digits",
        rich_help_panel=DATA,
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="The folder that holds the dataset.",
        show_default="./data",
        rich_help_panel=DATA,
    ),
]
Download = Annotated[
    bool | None,
    typer.Option(
        "--download",
        help="Fetch the dataset into the folder when it is not there.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
FewRatio = Annotated[
    float | None,
    typer.Option(
        "--few-ratio",
        metavar="SHARE",
        help="Share of the training images to use, the same of every class.",
        show_default="1.0",
        rich_help_panel=DATA,
    ),
]
ValFraction = Annotated[
    float | None,
    typer.Option(
        "--val-fraction",
        metavar="SHARE",
        help="Share of the training images to hold out for validation.",
        show_default="0.0",
        rich_help_panel=DATA,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Images per step; eval takes 250 where nothing is said.",
        show_default="64",
        rich_help_panel=DATA,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        help="Passes over the training images.",
        show_default="100",
        rich_help_panel=TRAINING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Seeds the initial weights, the order and the augmentation.",
        show_default="0",
        rich_help_panel=TRAINING,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda or cuda:N.",
        show_default="auto",
        rich_help_panel=TRAINING,
    ),
]
RecipeSource = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="Start from a bundled recipe (tutelage list recipes) or a YAML file; flags and --set change it.",
        rich_help_panel=TRAINING,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Change any setting of the recipe, e.g. optimiser.lr=0.1; may be given again and again.",
        rich_help_panel=TRAINING,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="The folder for the run's record.",
        show_default="a new one in ./runs",
        rich_help_panel=OUTPUT,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as one JSON object on the last line.",
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Show no progress and no warnings.", rich_help_panel=OUTPUT)
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of a failure (also with TUTELAGE_DEBUG=1).",
        rich_help_panel=OUTPUT,
    ),
]

NOT_IN_RECIPE = {"measure", "probe_batch", "peer", "recipe", "settings", "out", "json", "quiet", "debug"}


def recipe_flags(context: typer.Context) -> dict[str, Any]:
    """The flags that set something in the recipe, by their names as keywords; None where not given."""
    return {name: value for name, value in context.params.items() if name not in NOT_IN_RECIPE}
