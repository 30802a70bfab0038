"""The training loop: phases, epochs, steps, evaluation, checkpoints."""

from __future__ import annotations

import time
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from tutelage.data import ImageData
from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.methods import Clock, Method, Networks, Phase
from tutelage.models.network import Outputs
from tutelage.recipes import Recipe
from tutelage.runs.record import RunFolder
from tutelage.training.answers import answers_for, taught_batches
from tutelage.training.checkpoints import gathered, load_state, restore, save_state, seed_at
from tutelage.training.distributed import (
    anywhere,
    average_statistics,
    check_processes,
    copy_from_writer,
    distributed,
    from_all,
    from_writer,
    is_writer,
    rank_seed,
    resume_command,
    wait_for_all,
    world,
)
from tutelage.training.evaluate import evaluate_students
from tutelage.training.events import EventWriter
from tutelage.training.hardware import amp_type, wants_compile
from tutelage.training.keeping import Keeper
from tutelage.training.meter import Meter
from tutelage.training.networks import student_recipes
from tutelage.training.optimisers import create_optimiser, set_learning_rate
from tutelage.training.progress import Reporter, Ticker
from tutelage.training.schedules import learning_rate
from tutelage.training.stage_cache import load_stage, phase_facts, save_stage, stage_path
from tutelage.training.step import Call, Step, check_last_batch, compiled_or_eager
from tutelage.training.stopping import Interrupted, StopSignals, check_finite, check_sound


class Trainer:
    """Runs a recipe's phases on assembled parts and writes the record."""

    def __init__(
        self,
        recipe: Recipe,
        nets: Networks,
        method: Method,
        data: ImageData,
        run: RunFolder,
        reporter: Reporter,
        sidecar: dict[str, Any],
    ) -> None:
        """Args:
        recipe: Resolved recipe.
        nets: Networks on their device.
        method: Set up and on the device.
        data: Hands out the images.
        run: Folder that receives the record.
        reporter: Where progress is shown.
        sidecar: Facts written beside the student's weights.
        """
        self.recipe, self.nets, self.method, self.data = recipe, nets, method, data
        self.run, self.reporter = run, reporter
        self.device = data.device
        self.amp = amp_type(recipe, self.device)
        self.phases = tuple(method.phases())
        parts = student_recipes(recipe, method)
        self.keeper = Keeper(run.path, parts, nets, method, sidecar, recipe.selection)
        self.rotations = method.needs.student_branches if recipe.data.branch_evaluation else 0
        self.steps_per_epoch = data.steps_per_epoch(recipe.data.batch_size)
        self.generator = torch.Generator(device=self.device)
        self.generator.manual_seed(rank_seed(recipe.seed))
        if not is_writer():  # the parts were made from the same numbers in all processes; what follows is not
            torch.manual_seed(rank_seed(recipe.seed))
        decay = recipe.runtime.ema_decay
        self.ema = [ModelEmaV3(net.model, decay=decay) for net in nets.students] if decay else []
        self.step_nets = nets.folded(data.info.image_size)
        self.answers = answers_for(recipe, self.step_nets, method, data, self.amp, reporter)
        self.phase = self.epoch = self.step = 0
        self.meter = Meter(self.device)
        self.best: dict[str, Any] = {}
        self.seconds = 0.0
        self.spent, self.images = 0.0, 0  # seconds before a stop, and images, of the epoch that goes on
        self.began = time.perf_counter()
        self.stop = StopSignals()
        self._begin_phase()

    def fit(self) -> dict[str, Any]:
        """Train to the end from wherever the trainer stands.

        Returns:
            The last epoch's record.

        Raises:
            Interrupted: A stop was asked for; the state is saved.
            TutelageError: The loss is not finite, or the disk is full.
        """
        total = sum(self._epochs(phase) for phase in self.phases) * self.steps_per_epoch
        wanted = self.recipe.runtime.tensorboard and is_writer()
        events = EventWriter(self.run.path, wanted, purge_step=self._epochs_done())
        self.reporter.start(total, self._epochs_done() * self.steps_per_epoch + self.step)
        try:
            with self.stop.listening():
                while not self.over:
                    if self._taken_over():
                        continue
                    events.write(self._run_epoch(), self._epochs_done() - 1)
        finally:
            self.reporter.stop()
            events.close()
        wait_for_all()  # for the writer's last line
        return self.run.metrics()[-1]

    @property
    def over(self) -> bool:
        """Whether all phases are done."""
        return self.phase == len(self.phases)

    # -- one phase, one epoch, one step -------------------------------------------------------------

    def _begin_phase(self) -> None:
        """Make the step and the optimiser of the current phase; nothing is carried over but the weights."""
        if self.over:
            return
        phase = self.phases[self.phase]
        if phase.evaluated:  # what a first stage reached is not the best of what follows it
            self.best = {}
        with_students = phase.trains == "student"
        self.module = Step(self.step_nets, self.method, phase.objective, self.amp, with_students)
        self.call: Call = self.module
        self.together = distributed(self.module) if phase.update else None
        self.compiled = self.tried = False
        self.optimiser = create_optimiser(self.module, self.recipe.optimiser)
        if self.phase:  # so that it doesn't matter how, or whether here, the stretch before was trained
            torch.manual_seed(rank_seed(self.recipe.seed) + self.phase)
            self.generator.manual_seed(rank_seed(self.recipe.seed) + self.phase)
        self.trained_parameters = [p for group in self.optimiser.param_groups for p in group["params"]]

    def _run_epoch(self) -> dict[str, Any]:
        phase, recipe = self.phases[self.phase], self.recipe
        self.began, self.spent = time.perf_counter() - self.spent, 0.0
        asked = self.answers.asked if self.answers else 0
        where = (self._epochs_done(), recipe.seed, recipe.data.batch_size, self.step)
        ticker = Ticker()
        rate = self._rate(phase, max(self.step - 1, 0))  # stays where no image of what is left can be read
        self._train_mode(phase)
        for batch, taught in taught_batches(self.data, self.answers, *where):
            self.images += self._rows(batch)
            rate = self._train_step(batch, taught, phase)
            if is_writer() and ticker.due():
                self._show(phase, self.images / (time.perf_counter() - self.began))
            self._after_step()
        self._synchronise()
        average_statistics(self._parts().values())  # the same networks before they are measured and saved
        train_seconds = time.perf_counter() - self.began
        record: dict[str, Any] = {
            "phase": phase.name,
            "epoch": self.epoch,
            "lr": rate,
            "train": self.meter.read(),
            **(self._evaluate() if phase.evaluated else {"val": None, "test": None}),
            "seconds": round(time.perf_counter() - self.began, 3),
            "images_per_second": round(self.images / train_seconds, 1),
            **({"teacher_asked": self.answers.asked - asked} if self.answers else {}),
        }
        self._check_sound()
        if phase.evaluated:
            self._check_finite(record["test"]["loss"])
        self._finish_epoch(record)
        return record

    def _train_step(self, batch: Batch, taught: Outputs | None, phase: Phase) -> float:
        recipe, rate = self.recipe, self._rate(phase, self.step)
        set_learning_rate(self.optimiser, rate)
        count = self.epoch * self.steps_per_epoch + self.step
        clock = Clock(
            torch.full((), float(self.epoch), device=self.device),
            torch.full((), float(count), device=self.device),
        )
        rows, share = self._rows(batch), self.data.share
        if not self.tried:
            check_last_batch(self.module, self.data, recipe.data.batch_size, batch, clock, taught)
            self.tried = True
        self.method.row_counts = share.unequal(rows)
        batch = self.method.views(batch, self.generator)
        full = rows == recipe.data.batch_size
        if full and not self.compiled and wants_compile(recipe, self.device):
            self._compile(batch, clock, taught)
        # A short last batch would need a second compilation for one step an epoch.
        call = self.call if full else self.module
        result = self.together(call, batch, clock, taught) if self.together else call(batch, clock, taught)
        if phase.update:
            (result.loss * share.factor(rows)).backward()
            if recipe.optimiser.clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(self.trained_parameters, recipe.optimiser.clip_grad)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            for average, net in zip(self.ema, self.nets.students, strict=False):
                average.update(net.model)
        self.method.commit(batch)
        self.meter.add(result, share.counted(rows))
        self.step += 1
        if (self.epoch, self.step) == (0, 1):
            self._note_beginning(phase)
        return rate

    def _note_beginning(self, phase: Phase) -> None:
        """Record what the losses were before anything was learnt: an untrained network's are known."""
        seen = self.meter.read()
        before = self.run.facts().get("first_step", {})
        self.run.update(first_step={**before, phase.name: {"loss": seen["loss"], **seen["terms"]}})

    def _compile(self, batch: Batch, clock: Clock, taught: Outputs | None) -> None:
        self.reporter.say("compiling the step and comparing its gradients with the eager ones ...")
        self.call, why_not = compiled_or_eager(self.module, batch, clock, taught)
        self.compiled = True
        if why_not:
            self.reporter.warn(f"{why_not}; going on without compiling")
        self.run.update(compiled=why_not is None, compile_note=why_not)

    def _train_mode(self, phase: Phase) -> None:
        for net in self.nets.students:
            net.train()
        self.method.train()

    def _evaluate(self) -> dict[str, Any]:
        average = self.ema[0].module if self.ema else None
        size = self.recipe.data.eval_batch_size
        return evaluate_students(self.nets, self.data, size, self.rotations, average)

    def _finish_epoch(self, record: dict[str, Any]) -> None:
        self.seconds += record["seconds"]
        if self.phases[self.phase].evaluated:
            self.best = self.keeper.keep(record, self.best, self.ema)
        if self.answers is not None:
            self.answers.keep()
        self._report_unreadable()
        self.run.append(record)
        self.reporter.epoch(record, self._epochs(self.phases[self.phase]), self._seconds_left(record))
        self.meter.reset()
        self.step = self.images = 0
        self.epoch += 1
        if self.epoch == self._epochs(self.phases[self.phase]):
            self._end_phase()
        self.save()

    def _end_phase(self) -> None:
        phase = self.phases[self.phase]
        if phase.part and self.recipe.runtime.reuse_stages and is_writer():
            save_stage(self._stage_facts(phase), self.method.get_submodule(phase.part))
        self.phase, self.epoch = self.phase + 1, 0
        self._begin_phase()

    def _taken_over(self) -> bool:
        """Whether the phase that would begin now was already trained, in an earlier run; then it is over."""
        phase = self.phases[self.phase]
        beginning = (self.epoch, self.step) == (0, 0)
        if not (phase.part and beginning and self.recipe.runtime.reuse_stages):
            return False
        facts, part = self._stage_facts(phase), self.method.get_submodule(phase.part)
        if not from_writer(lambda: load_stage(facts, part)):
            return False
        copy_from_writer(part)
        self.reporter.say(f"{phase.name}: taken over from an earlier run ({stage_path(facts)})")
        self.run.update(taken_over={phase.name: stage_path(facts).name})
        self.phase += 1
        self._begin_phase()
        self.save()
        return True

    def _stage_facts(self, phase: Phase) -> dict[str, Any]:
        facts = phase_facts(self.recipe, self.nets, self.method, self.data, phase, self.amp)
        return facts if world() == 1 else {**facts, "processes": world()}

    def _report_unreadable(self) -> None:
        """Name image files that couldn't be read, in the record and once to the user."""
        bad = sorted(set[str]().union(*from_all(self.data.unreadable)))
        new = set(bad) - set(self.run.facts().get("unreadable", ()))
        if new:
            self.reporter.warn(f"{len(new)} image files can't be read and were left out, first {min(new)}")
            self.run.update(unreadable=bad)

    # -- state --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write everything that is needed to go on to ``state.pt``: once, with what differs by process."""
        spent = [time.perf_counter() - self.began, self.images] if self.step else [0.0, 0]
        parts = gathered(self._parts(), self.generator, self.meter)
        if not is_writer():
            return
        state = {
            "recipe": self.recipe.hash(),
            "processes": world(),
            "position": [self.phase, self.epoch, self.step],
            **parts,
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "seconds": self.seconds,
            "spent": spent,
            "epochs_written": len(self.run.metrics()),
        }
        save_state(self.run.state, state)

    def load(self) -> None:
        """Go back to the saved state; metrics written after it are cut off.

        Raises:
            UserError: No usable state, or that of another recipe or number of processes.
        """
        state = load_state(self.run.state, self.device)
        if state["recipe"] != self.recipe.hash():
            raise UserError(
                f"{self.run.recipe} is not the recipe the run began with; put that back or start a new run"
            )
        check_processes(state["processes"], self.run.state)
        self.phase, self.epoch, self.step = state["position"]
        self._begin_phase()
        if not self.over:  # after the last phase the saved optimiser has nothing left to do
            self.optimiser.load_state_dict(state["optimiser"])
        afresh = seed_at(rank_seed(self.recipe.seed), state["position"])
        other = restore(state, self._parts(), self.generator, self.meter, afresh)
        if other is not None:
            self.reporter.warn(
                f"the run was on {other} and goes on on {self.device.type}: random numbers begin afresh from "
                "its seed, so what follows isn't bit for bit what it would have been"
            )
        self.best, self.seconds = state["best"], state["seconds"]
        self.spent, self.images = state.get("spent", (0.0, 0))
        self.run.keep_metrics(state["epochs_written"])

    def _parts(self) -> dict[str, nn.Module]:
        """What is learnt or remembered, by name."""
        students = {f"student{number}": net for number, net in enumerate(self.nets.students)}
        averages = {f"ema{number}": average.module for number, average in enumerate(self.ema)}
        return {**students, "method": self.method, **averages}

    def _after_step(self) -> None:
        """Save when asked to; stop when a signal came."""
        last = self.step == self.steps_per_epoch
        every = self.recipe.runtime.checkpoint_steps
        if anywhere(self.stop.came) and not last:
            self._check_sound()
            self.save()
            raise Interrupted(f"stopped; continue with: {resume_command()} {self.run.path}")
        if every and self.step % every == 0 and not last:
            self._check_sound()
            self.save()

    # -- small things -------------------------------------------------------------------------------

    def _epochs(self, phase: Phase) -> int:
        return phase.epochs or self.recipe.schedule.epochs

    def _rate(self, phase: Phase, step: int) -> float:
        """Learning rate of a step of the current epoch."""
        schedule, base = self.recipe.schedule, self.recipe.optimiser.lr
        return phase.lr or learning_rate(schedule, base, self.epoch, step, self.steps_per_epoch)

    def _epochs_done(self) -> int:
        """Epochs finished over all phases; also the number that orders and augments the coming one."""
        return sum(self._epochs(phase) for phase in self.phases[: self.phase]) + self.epoch

    def _seconds_left(self, record: dict[str, Any]) -> float:
        total = sum(self._epochs(phase) for phase in self.phases)
        return float(record["seconds"]) * (total - self._epochs_done() - 1)

    def _show(self, phase: Phase, speed: float) -> None:
        seen = self.meter.read_own()
        self._check_finite(seen["loss"])
        done = self._epochs_done() * self.steps_per_epoch + self.step
        self.reporter.step(done, self.epoch, self._epochs(phase), seen["loss"], seen["top1"], speed)

    def _check_finite(self, loss: float) -> None:
        check_finite(loss, self.epoch, self.step, self.run.state)

    def _check_sound(self) -> None:
        """Leave the last good state as it is where this one is not."""
        self._check_finite(self.meter.read()["loss"])
        check_sound(self._parts().values(), self.epoch, self.step, self.run.state)

    def _rows(self, batch: Batch) -> int:
        """Images of the current step's batch in all processes."""
        if world() == 1:
            return len(batch.targets)
        return self.data.batch_rows(self.step, self.recipe.data.batch_size)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
