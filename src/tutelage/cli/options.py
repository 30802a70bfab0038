"""The flags that several commands share, each defined once.

Where a flag means something else to another command, a function makes it: the name and the place in the help
stay the same, and the command says what it does there.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

NETWORKS = "Networks"
DATA = "Data"
TRAINING = "Training"
OUTPUT = "Output"


def teacher(help: str, show_default: str | bool = True) -> Any:
    """The flag of the teacher's name."""
    return typer.Option(
        "--teacher", metavar="NAME", help=help, show_default=show_default, rich_help_panel=NETWORKS
    )


def weights(help: str) -> Any:
    """The flag of a network's weights."""
    return typer.Option("--weights", metavar="FILE", help=help, rich_help_panel=NETWORKS)


def pretrained(help: str) -> Any:
    """The flag of timm's weights."""
    return typer.Option("--pretrained", help=help, show_default=False, rich_help_panel=NETWORKS)


def method(default: str) -> Any:
    """The flag of the method, which is ``default`` where the command's user names none."""
    return typer.Option(
        "--method",
        metavar="NAME",
        help="How to train (tutelage list methods).",
        show_default=default,
        rich_help_panel=TRAINING,
    )


def data(help: str, default: str) -> Any:
    """The flag of the dataset's name."""
    return typer.Option("--data", metavar="NAME", help=help, show_default=default, rich_help_panel=DATA)


def data_dir(default: str) -> Any:
    """The flag of the dataset's folder."""
    return typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="The folder that holds the dataset.",
        show_default=default,
        rich_help_panel=DATA,
    )


def batch_size(help: str, default: str) -> Any:
    """The flag of the number of images that are computed together."""
    return typer.Option("--batch-size", metavar="N", help=help, show_default=default, rich_help_panel=DATA)


def settings(change: str, example: str) -> Any:
    """The flag of everything that has none of its own."""
    return typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help=f"{change}, e.g. {example}; may be given again and again.",
        rich_help_panel=TRAINING,
    )


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
Teacher = Annotated[str | None, teacher("The frozen network to learn from.")]
Weights = Annotated[
    str | None, weights("Weights of the model or student; without them training starts afresh.")
]
TeacherWeights = Annotated[
    str | None,
    typer.Option(
        "--teacher-weights", metavar="FILE", help="Weights of the teacher.", rich_help_panel=NETWORKS
    ),
]
Pretrained = Annotated[
    bool | None,
    pretrained(
        "Start from timm's pretrained weights, or from --weights in their place; a classifier for other "
        "classes than the data's is dropped."
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
Data = Annotated[str | None, data("The dataset (tutelage list datasets).", "digits")]
DataDir = Annotated[str | None, data_dir("./data")]
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
BatchSize = Annotated[int | None, batch_size("Images per step.", "64")]
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
Settings = Annotated[list[str] | None, settings("Change any setting of the recipe", "optimiser.lr=0.1")]
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
