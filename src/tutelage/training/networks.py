"""The networks of a run: created, given their weights, told what to hand over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tutelage.data import ImageData
from tutelage.errors import UserError
from tutelage.methods import Method
from tutelage.models.branches import load_branches
from tutelage.models.fingerprint import fingerprint, weights_hash
from tutelage.models.fitting import OtherClasses, load_into
from tutelage.models.network import Ask, Network, Role, check_input, create_network
from tutelage.models.pretrained import pretrained_state
from tutelage.models.reading import ImportedWeights, read_state_dict
from tutelage.models.weights import joint_state
from tutelage.recipes import ModelRecipe, Recipe
from tutelage.recipes.schema import DataRecipe
from tutelage.training.class_lists import check_classes
from tutelage.training.distributed import with_synchronised_norms
from tutelage.training.flags import fine_tuning
from tutelage.training.loading import image_size
from tutelage.training.preprocessing import RGB, own_normalisation, own_size, preprocessing


def student_recipes(recipe: Recipe, method: Method) -> tuple[ModelRecipe, ...]:
    """The networks that are trained: the student, the peers, and copies of the student for missing peers.

    Raises:
        UserError: More peers than the method trains.
    """
    needs = method.needs
    given = (recipe.student, *recipe.peers)
    if len(given) > needs.students:
        raise UserError(
            f"method '{method.name}' trains {needs.students} network{'s' * (needs.students > 1)}, but "
            f"{len(given)} are given; drop peers, or set method.networks where the method has it"
        )
    return given + (recipe.student,) * (needs.students - len(given))


def build_network(
    part: ModelRecipe,
    data: ImageData,
    given: tuple[RGB, RGB],
    ask: Ask,
    role: Role,
    name: str,
    recipe: DataRecipe,
    synchronised: bool = False,
) -> Network:
    """Create one network, load its weights, and put its own image size and normalisation in front.

    Args:
        part: The network's part of the recipe.
        data: Gives class count and image size.
        given: Mean and std the images come with.
        ask: What it must hand over.
        role: "trained", "frozen", or "branches" for a frozen one whose branches are trained.
        name: What messages call it.
        recipe: The data's part of the recipe, for the command that a message advises.
        synchronised: Whether batch norms that train count the images of all processes.

    Raises:
        UserError: Unknown name, unreadable or unfitting weights, other class count, image size refused.
    """
    made = {key: value for key, value in part.args.items() if key != "pretrained"}
    model = create_network(part.name, data.info.num_classes, **made)
    imported, source = _weights(part, made, name), _source(part, name)
    notes: tuple[str, ...] = ()
    given_size = image_size(data)
    size = own_size(part, role != "trained", given_size)
    if imported is not None:
        advice = fine_tuning(part, recipe, None if size == given_size else size[0])
        notes = _give_weights(model, imported, part, role, source, advice)
    if role != "trained":
        check_classes(part, data.info, source)
    check_input(model, size)
    if synchronised and role == "trained":
        model = with_synchronised_norms(model)
    network = Network(model, ask, role)
    if network.branches is not None and synchronised and role != "frozen":
        with_synchronised_norms(network.branches)
    if imported is not None:
        given_branches = {}
        if network.branches is not None and (imported.branches or role == "frozen"):
            load_branches(network.branches, imported.branches, source)
            given_branches = imported.branches
        network.origin = origin_hash(imported.state, given_branches)
    network.preprocess = preprocessing(given, own_normalisation(part), given_size, size)
    network.notes = notes
    return network


def origin_hash(state: Mapping[str, Tensor], branches: Mapping[str, Tensor]) -> str:
    """The hash of weights as they lie in a file, whatever a network makes of them.

    A new classifier in the place of the file's is another one for every seed, and names are translated.

    Args:
        state: Of the network.
        branches: Of its branches, where they are used; may be empty.
    """
    return weights_hash(joint_state(state, branches) if branches else state)


def _source(part: ModelRecipe, name: str) -> str:
    """What messages call the weights of a network."""
    return f"{name} weights {part.weights}" if part.weights else f"{name}'s pretrained weights ({part.name})"


def _weights(part: ModelRecipe, settings: dict[str, Any], name: str) -> ImportedWeights | None:
    """The weights that a network starts from: a file's, else timm's; None for none."""
    if part.weights is not None:
        return read_state_dict(Path(part.weights), prefix=part.prefix)
    if part.pretrained:
        return ImportedWeights(pretrained_state(part.name, **settings), "timm's pretrained weights")
    if part.reset_head:
        raise UserError(
            f"the {name} has no weights whose classifier could be dropped; give --weights FILE or "
            "--pretrained, or leave out --reset-head"
        )
    return None


def _give_weights(
    model: nn.Module, imported: ImportedWeights, part: ModelRecipe, role: Role, source: str, advice: str
) -> tuple[str, ...]:
    """Load the weights, with a new classifier where that is wanted; see `load_into`.

    Pretrained weights, and a file that stands for them, are there to be trained further, so that their
    classifier gives way where the data have other classes. Any other file's does so on request alone: the
    data may have been mistaken.
    """
    if part.reset_head and role != "trained":
        raise UserError(f"{source}: a frozen network can't learn a new classifier; leave out reset_head")
    try:
        return load_into(model, imported.state, source, part.reset_head)
    except OtherClasses as error:
        if part.pretrained and role == "trained":
            return load_into(model, imported.state, source, reset_head=True)
        if role == "trained":
            raise UserError(f"{error}, or drop the weights' classifier with --reset-head") from error
        raise UserError(f"{error}; to make it one for these data, fine-tune it first: {advice}") from error


def network_facts(part: ModelRecipe, network: Network, image_size: tuple[int, int]) -> dict[str, Any]:
    """Name and fingerprint of a network for the record.

    Args:
        part: Of the recipe.
        network: Built from it.
        image_size: (H, W) of the data's images; the cost is counted at the size that the network gets.
    """
    size = network.received(image_size)[-2:]
    mark = fingerprint(network.model, size)
    return {
        "name": part.name,
        "image_size": list(size),
        "parameters": mark.parameters,
        "macs": mark.macs,
        "schema_hash": mark.schema_hash,
        "weights": Path(part.weights).name if part.weights else None,
        "weights_hash": weights_hash(network.model),
        "origin_hash": network.origin,
        "pretrained": part.pretrained and part.weights is None,
        "notes": list(network.notes),
    }
