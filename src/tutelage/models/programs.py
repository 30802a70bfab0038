"""Networks as programs that run without their Python code: torch.export and ONNX, checked by numbers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tutelage.errors import TutelageError, UserError
from tutelage.models.creation import first_line
from tutelage.models.probing import Size, image_shape, undisturbed

Answer = Callable[[Tensor], Tensor]
"""Images [B, 3, H, W] float32 to logits [B, N], both on the CPU."""

ALLOWED = 1e-4
"""Largest difference of a logit that a program may have from its network."""
CHECKED = (1, 7)
"""Numbers of images at which a program is compared with its network."""
MOST = 2**31 - 1
"""Images that a program takes at once; torch 2.7 doesn't believe that there can be any number of them."""
ONE_FILE = 1_900_000_000
"""Bytes of weights beyond which an ONNX file, limited to 2 GB, has them in a file of their own."""
ONNX_NEEDS = ("onnx", "onnxruntime", "onnxscript")
IMAGES, LOGITS = "images", "logits"
"""What an ONNX file calls its input and its output."""


def check_onnx() -> None:
    """Refuse to begin what can't be finished here.

    Raises:
        UserError: A package that ONNX files need is not installed.
    """
    missing = [name for name in ONNX_NEEDS if find_spec(name) is None]
    if missing:
        raise UserError(
            f"writing ONNX needs {', '.join(missing)}; install the extra with pip install "
            '"tutelage[export]", or leave it out with --no-onnx'
        )


def trace_program(model: nn.Module, size: Size) -> ExportedProgram:
    """The network in evaluation mode as torch.export's program, for any number of images of one size.

    Names of files and lines, which torch.export notes for each operation, are taken out: a program may be
    published, and they tell about the machine it was made on.

    Args:
        model: On the CPU, in float32.
        size: Of the images.

    Raises:
        TutelageError: The network can't be traced, or only for one number of images.
    """
    images = torch.zeros(2, *image_shape(size))  # one image would count as a size that never changes
    try:
        with undisturbed(model), quiet():
            shapes = ({0: Dim("batch", max=MOST)},)
            program = torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise TutelageError(
            f"{type(model).__name__} can't be traced for batches of any size: {first_line(error)}; leave the "
            "programs out with --no-program --no-onnx"
        ) from error
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write ``program`` so that ``torch.export.load(path).module()`` gives it back."""
    with quiet():
        torch.export.save(program, path)


def write_onnx(program: ExportedProgram, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write ``program`` as ONNX; the first dimension of input and output is called ``batch``.

    Args:
        program: See `trace_program`.
        path: The file. Very large weights lie beside it, in ``path`` with ``.data`` added.
        notes: Kept in the file as its metadata.

    Raises:
        TutelageError: An operation has no counterpart in ONNX.
    """
    weights = sum(value.nbytes for value in program.state_dict.values())
    try:
        with quiet():
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
            converted.model.metadata_props.update(notes or {})
            converted.save(path, external_data=weights > ONE_FILE)
    except OSError:
        raise
    except Exception as error:
        raise TutelageError(
            f"the network can't be written as ONNX: {first_line(error)}; leave it out with --no-onnx"
        ) from error


def read_program(path: Path) -> Answer:
    """The answers of a file that `write_program` wrote; nobody else's file, as reading one may run code."""
    with quiet():
        module = torch.export.load(path).module()

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return answer


def read_onnx(path: Path) -> Answer:
    """The answers that onnxruntime gives on the CPU, with as many threads as PyTorch has."""
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([LOGITS], {IMAGES: images.contiguous().numpy()})[0])


def plain_answer(model: nn.Module) -> Answer:
    """The answers of the network itself, in evaluation mode."""

    def answer(images: Tensor) -> Tensor:
        with undisturbed(model):
            logits: Tensor = model(images)
        return logits

    return answer


def compare(
    name: str, answer: Answer, model: nn.Module, images: Tensor, counts: Sequence[int] = CHECKED
) -> dict[str, float]:
    """Compare a program's logits with the network's.

    Args:
        name: What messages call the program.
        answer: The program's.
        model: The network.
        images: [B, 3, H, W], at least as many as the largest count.
        counts: How many images at a time.

    Returns:
        For each count (as text) the largest absolute difference of a logit.

    Raises:
        TutelageError: It is above `ALLOWED`, or the program fails.
    """
    expected = plain_answer(model)
    differences: dict[str, float] = {}
    for count in counts:
        try:
            got = answer(images[:count])
        except Exception as error:
            raise TutelageError(
                f"{name} fails on {count} images: {first_line(error)}; nothing was written"
            ) from error
        wanted = expected(images[:count])
        if got.shape != wanted.shape:
            raise TutelageError(
                f"{name} gives logits {list(got.shape)} instead of {list(wanted.shape)} for {count} images; "
                "nothing was written"
            )
        difference = float((got - wanted).detach().abs().max())
        if not difference <= ALLOWED:
            raise TutelageError(
                f"{name} gives other logits than the network: {difference:.2g} apart on {count} images, "
                f"where {ALLOWED:g} is allowed; nothing was written"
            )
        differences[str(count)] = difference
    return differences


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters warn of: deprecations inside of them, which no user can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
