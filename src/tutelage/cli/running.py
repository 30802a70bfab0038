"""The commands that compute: demo, train, distill, resume, eval, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli import options, views
from tutelage.cli.console import finish
from tutelage.cli.examination import examination


def demo(
    method: Annotated[str | None, options.method("kd")] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            metavar="N",
            help="How many students of each kind.",
            rich_help_panel=options.TRAINING,
        ),
    ] = 3,
    device: options.Device = None,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """See what distillation brings, on real handwritten digits, in minutes.

    Trains a teacher on all training digits, then a small student on a few,
    alone and distilled, over several seeds. Prints a table and writes a page.
    Nothing is downloaded.

    [bold]Examples[/bold]

    tutelage demo

    tutelage demo --method hsakd --seeds 5 --out runs/hsakd-demo
    """
    from tutelage.training.demo import demo as job
    from tutelage.training.progress import Reporter

    result = job(out, method=method or "kd", seeds=seeds, device=device or "auto", reporter=Reporter(quiet))
    finish(result, json, views.demo)


def train(
    context: typer.Context,
    model: options.Model = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = None,
    reset_head: options.ResetHead = None,
    method: Annotated[str | None, options.method("none")] = None,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    download: options.Download = None,
    few_ratio: options.FewRatio = None,
    val_fraction: options.ValFraction = None,
    batch_size: options.BatchSize = None,
    epochs: options.Epochs = None,
    seed: options.Seed = None,
    device: options.Device = None,
    recipe: options.RecipeSource = None,
    settings: options.Settings = None,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    r"""Train one network without a teacher: from labels alone, or as a teacher to be.

    Leaves a folder with the recipe, the metrics of every epoch, the last and
    the best weights, and everything needed to resume.

    [bold]Examples[/bold]

    tutelage train --model resnet8_cifar --epochs 20

    tutelage train --model swin_tiny_patch4_window7_224 --pretrained \
      --data cifar100 --data-dir data --set data.image_size=224 --epochs 30

    tutelage train --model resnet56_cifar --weights r56.safetensors \
      --method hsakd_teacher --set method.frozen=true \
      --data cifar100 --data-dir data --epochs 100
    """
    from tutelage.training import jobs
    from tutelage.training.progress import Reporter

    result = jobs.train(
        recipe,
        out=out,
        settings=settings or (),
        reporter=Reporter(quiet),
        **options.recipe_flags(context),
    )
    finish(result, json, views.run)


def distill(
    context: typer.Context,
    student: options.Student = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = None,
    reset_head: options.ResetHead = None,
    teacher: options.Teacher = None,
    teacher_weights: options.TeacherWeights = None,
    teacher_pretrained: options.TeacherPretrained = None,
    method: Annotated[str | None, options.method("kd")] = None,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    download: options.Download = None,
    few_ratio: options.FewRatio = None,
    val_fraction: options.ValFraction = None,
    batch_size: options.BatchSize = None,
    epochs: options.Epochs = None,
    seed: options.Seed = None,
    device: options.Device = None,
    recipe: options.RecipeSource = None,
    settings: options.Settings = None,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    r"""Distil a student from a teacher.

    The teacher is evaluated first, so that the record says what it was worth.
    'tutelage show METHOD' lists a method's settings; --set method.NAME=VALUE
    changes one.

    [bold]Examples[/bold]

    tutelage distill --teacher resnet56_cifar --teacher-weights r56.safetensors \
      --student resnet20_cifar --method kd --data cifar100 --data-dir data \
      --epochs 240

    tutelage distill --teacher resnet56_cifar --teacher-weights r56.safetensors \
      --student resnet8x4_cifar --method dkd --set method.beta=2 \
      --data cifar100 --few-ratio 0.25 --epochs 240

    tutelage distill --recipe runs/first/recipe.yaml --seed 1 --out runs/second
    """
    from tutelage.training import jobs
    from tutelage.training.progress import Reporter

    result = jobs.distill(
        recipe,
        out=out,
        settings=settings or (),
        reporter=Reporter(quiet),
        **options.recipe_flags(context),
    )
    finish(result, json, views.run)


def mutual(
    context: typer.Context,
    student: options.Student = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME",
            help="A network that learns with the student; repeat for more. None makes one like the student.",
            rich_help_panel=options.NETWORKS,
        ),
    ] = None,
    weights: options.Weights = None,
    method: Annotated[str | None, options.method("hssakd")] = None,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    download: options.Download = None,
    few_ratio: options.FewRatio = None,
    val_fraction: options.ValFraction = None,
    batch_size: options.BatchSize = None,
    epochs: options.Epochs = None,
    seed: options.Seed = None,
    device: options.Device = None,
    recipe: options.RecipeSource = None,
    settings: options.Settings = None,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    r"""Train networks that teach each other, without a teacher.

    The student and its peers see the same images and learn from each other's
    answers; all are measured and saved.

    [bold]Examples[/bold]

    tutelage mutual --student resnet20_cifar --data cifar100 --data-dir data \
      --epochs 240

    tutelage mutual --student resnet20_cifar --peer wrn_16_2_cifar --epochs 30
    """
    from tutelage.training import jobs
    from tutelage.training.progress import Reporter

    result = jobs.mutual(
        recipe,
        peers=peer or (),
        out=out,
        settings=settings or (),
        reporter=Reporter(quiet),
        **options.recipe_flags(context),
    )
    finish(result, json, views.run)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Go on with a run that was stopped.

    On a CPU the result is the same, bit for bit, as that of a run that
    nobody stopped.

    [bold]Examples[/bold]

    tutelage resume runs/resnet20_cifar-kd-cifar100-s0

    tutelage resume runs/first --device cpu --json
    """
    from tutelage.training import jobs
    from tutelage.training.progress import Reporter

    finish(jobs.resume(run, device=device, reporter=Reporter(quiet)), json, views.run)


def evaluate(
    model: options.Model = None,
    weights: Annotated[str | None, options.weights("The weights to measure.")] = None,
    pretrained: Annotated[
        bool | None,
        options.pretrained("Measure timm's pretrained weights, or --weights in their place."),
    ] = None,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    download: options.Download = None,
    batch_size: Annotated[
        int | None, options.batch_size("Images at a time; changes no result.", "250")
    ] = None,
    device: options.Device = None,
    settings: Annotated[
        list[str] | None, options.settings("Change what is measured", "data.image_size=224")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    r"""Measure a network on the test images: top-1, top-5 and loss.

    Computes in float32. Images get the normalisation noted beside the weights,
    and the result is compared with the accuracy noted there.

    [bold]Examples[/bold]

    tutelage eval --model resnet56_cifar --weights r56.safetensors \
      --data cifar100 --data-dir data

    tutelage eval --model resnet8_cifar --weights runs/first/student.safetensors \
      --json
    """
    from tutelage.training import jobs
    from tutelage.training.progress import Reporter

    result = jobs.evaluate(
        model,
        weights=weights,
        pretrained=pretrained,
        data=data,
        data_dir=data_dir,
        download=download,
        batch_size=batch_size,
        device=device,
        settings=settings or (),
        reporter=Reporter(quiet),
    )
    finish(result, json, views.evaluation)


def doctor(
    context: typer.Context,
    model: options.Model = None,
    student: options.Student = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = None,
    reset_head: options.ResetHead = None,
    teacher: options.Teacher = None,
    teacher_weights: options.TeacherWeights = None,
    teacher_pretrained: options.TeacherPretrained = None,
    method: Annotated[str | None, options.method("kd, or none with --model")] = None,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    download: options.Download = None,
    few_ratio: options.FewRatio = None,
    val_fraction: options.ValFraction = None,
    batch_size: options.BatchSize = None,
    epochs: options.Epochs = None,
    seed: options.Seed = None,
    device: options.Device = None,
    recipe: options.RecipeSource = None,
    settings: options.Settings = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="Evaluate the teacher and time some steps, or only describe.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = True,
    probe_batch: Annotated[
        int | None,
        typer.Option(
            "--probe-batch",
            metavar="N",
            min=2,
            help="Images in the timed steps; time and memory are scaled to the batch size.",
            show_default="the batch size; less on a CPU where a step takes long",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    r"""Look at a run before it starts; nothing is trained or written.

    Takes the flags of 'distill', or those of 'train' with --model. Shows what
    the teacher reaches and what it should reach, whether normalisation and
    image size fit, which stages are tapped, what is trained beside the student,
    how the gradient divides among the loss terms, and what time and memory the
    run will take. The teacher's weights and the data may still be missing.

    [bold]Examples[/bold]

    tutelage doctor --teacher resnet56_cifar --teacher-weights r56.safetensors \
      --student resnet20_cifar --method fitnet --data cifar100 --data-dir data

    tutelage doctor --teacher vit_small_patch16_224 --student mobilenetv2_100 \
      --method pat --data cifar100 --set data.image_size=224 --no-measure

    tutelage doctor --recipe runs/first/recipe.yaml
    """
    from tutelage.training.doctor import doctor as examine
    from tutelage.training.progress import Reporter

    result = examine(
        recipe,
        settings=settings or (),
        measure=measure,
        probe_batch=probe_batch,
        reporter=Reporter(quiet),
        **options.recipe_flags(context),
    )
    finish(result, json, examination)
