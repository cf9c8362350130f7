"""One training loop for every module of this toolkit, on accelerate.

Its two promises: a run that is killed at any moment and started again ends in the same bits as one left alone, and the
frozen LM is compared with what was loaded when the run ends. The first holds because the state is one atomically
replaced file, and because data order, rate and random numbers are pure functions of (seed, step): nothing else is
remembered. On a CPU it takes the same number of threads too, which the state notes. accelerate brings processes,
devices, reductions and trackers; micro-batches are weighted by hand, since its gradient accumulation averages their
means and so gives a short micro-batch the weight of a long one. The module is not wrapped for many processes: what is
trained is small, so gradients are summed after the backward pass.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from frozenlm.errors import DivergedError, FrozenLMError, FrozenViolationError
from frozenlm.optim import build_optimizer, set_rate, trained_parameters
from frozenlm.train_data import BatchOrder, derived_seed, split_evenly
from frozenlm.train_progress import StopRequest, TrainProgress, delayed_interrupt, make_accelerator
from frozenlm.train_settings import TrainSettings
from frozenlm.train_state import Record, RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from frozenlm.fingerprint import Verification
    from frozenlm.lm import FrozenLM

T = TypeVar("T")
Loss = Callable[[list[T]], tuple[Tensor, int]]
"""Examples -> (summed loss, a differentiable scalar; how many units it sums over, e.g. answer tokens)."""
Evaluate = Callable[[], float | Mapping[str, float]]
"""The dev score, higher is better; or several by name, of which `score` decides and all are tracked and kept."""

logger = logging.getLogger("frozenlm.training")


@dataclass
class FitResult:
    """What a run did.

    steps: optimizer steps of the whole run, resumed parts included
    best_step, best_score: the step whose weights the module now holds, and its score; no score without `evaluate`
    history: entries {step, loss, learning_rate[, score, and further scores by name]}; loss is the mean since the entry
        before, the rate that of parameters without one of their own
    seconds: time spent training, over all resumed parts, evaluations and saving among it
    step_seconds: of it, the steps alone
    resumed_from: the step this call began at; 0 for a new run
    already_trained: the run was finished before this call
    stopped_early: patience ran out
    verification: the LM compared with what was loaded, tensor by tensor; None without an LM
    """

    steps: int
    best_step: int
    best_score: float | None
    history: list[dict[str, float]]
    seconds: float
    step_seconds: float
    resumed_from: int
    already_trained: bool
    stopped_early: bool
    verification: "Verification | None"


def fit(
    module: nn.Module,
    *,
    examples: Sequence[T],
    loss: Loss[T],
    out: Path | str,
    settings: TrainSettings,
    rates: Mapping[str, float] | None = None,
    evaluate: Evaluate | None = None,
    lengths: Sequence[int] | None = None,
    identity: Mapping[str, Any] | None = None,
    lm: "FrozenLM | None" = None,
    trackers: Sequence[str] = (),
    progress: bool = True,
    log: Callable[[str], None] | None = None,
    restart: bool = False,
) -> FitResult:
    """Trains `module` and leaves its best weights in it (its last ones without `evaluate`).

    module: what is trained; only parameters with requires_grad move
    examples: [N] anything `loss` takes; indexed, so it may be lazy
    loss: gets a list of examples, returns their summed loss and the number of units summed over; a step's gradient is
        that of sum / units over the whole batch, however it is cut into micro-batches or spread over processes
    out: folder of the saved state; a folder holds one run
    rates: parameters that learn at another rate than the others: multiples of the settings' rate by prefix of the
        parameter's name, the longest one counts ({"prompt": 10.0} is for `prompt.vectors` too); the schedule holds for
        all
    evaluate: returns the dev score (see `Evaluate`); runs in eval mode without gradient
    lengths: [N] tokens an example; given, batches hold examples of like length
    identity: JSON values that, beside the settings, make this run what it is (data hash, initialisation, template)
    lm: the frozen LM behind `loss`; verified at the end
    restart: throw away the state in `out` and begin again

    Raises:
        ConfigError: no data, nothing to train, a rate for parameters that are not there, or `out` holds a run with
            other settings, or another process trains into it.
        CheckpointError: the state in `out` is damaged, or cannot be written.
        DivergedError: the loss or the gradient is not finite; the state of the last save is intact.
        FrozenLMError: a batch with nothing to learn from.
        FrozenViolationError: a weight of the LM has changed.
        MissingExtraError: a tracker is not installed.
        KeyboardInterrupt: Ctrl-C; the state is saved first.
    """
    out = Path(out)
    accelerator = make_accelerator(trackers, out, settings.as_dict())
    module.to(accelerator.device if lm is None else lm.device)
    what = {
        "settings": settings.as_dict(),
        "data": {"examples": len(examples), "by_length": lengths is not None, "evaluated": evaluate is not None},
        "module": {name: [str(p.dtype), *p.shape] for name, p in trained_parameters(module).items()},
        "lm": None if lm is None else lm.fingerprint,
        "task": dict(identity or {}),
    } | ({"rates": dict(rates)} if rates else {})  # absent without, as in states of earlier versions
    run = _Run(
        module=module,
        examples=examples,
        loss=loss,
        settings=settings,
        evaluate=evaluate,
        folder=RunFolder(out, what),
        order=BatchOrder(len(examples), settings.batch_size, seed=settings.seed, lengths=lengths),
        optimizer=build_optimizer(module, settings, rates),
        accelerator=accelerator,
        tracked=bool(trackers),
        log=log or logger.info,
    )
    with run.folder.locked() if accelerator.is_main_process else nullcontext():
        if restart:
            run.on_main(run.folder.discard)
        start, finished, was_training = run.resume(), run.record.finished, module.training
        try:
            if not finished:
                run.train(shown=progress)
        finally:
            module.train(was_training)
            # Not `end_training`: it also takes down the process group, which the caller may go on using.
            for tracker in accelerator.trackers:
                tracker.finish()
        if evaluate is not None:
            run.folder.load_best(module, run.record.best_step)
        return run.result(start, finished, lm)


@dataclass(kw_only=True)
class _Run:
    """The moving parts of one run."""

    module: nn.Module
    examples: Sequence[Any]
    loss: Loss[Any]
    settings: TrainSettings
    evaluate: Evaluate | None
    folder: RunFolder
    order: BatchOrder
    optimizer: torch.optim.Optimizer
    accelerator: "Accelerator"
    tracked: bool
    log: Callable[[str], None]
    record: Record = field(default_factory=lambda: Record(threads=torch.get_num_threads()))

    def __post_init__(self) -> None:
        self.device = next(iter(trained_parameters(self.module).values())).device

    def resume(self) -> int:
        """Takes up the state of the folder, when there is one. Returns the step to begin at."""
        found = self.folder.load(self.module, self.optimizer)
        if found is not None:
            self.record = found
            where = f"step {found.step} of {self.settings.steps} ({self.folder.folder})"
            self.log(f"already trained: {where}" if found.finished else f"resuming after {where}")
            self._compare_threads()
        elif self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for tensor in self.module.state_dict().values():
                tensor.copy_(broadcast(tensor.contiguous()))
        self.accelerator.wait_for_everyone()
        return self.record.step

    def _compare_threads(self) -> None:
        began, now = self.record.threads, torch.get_num_threads()
        if self.device.type == "cpu" and not self.record.finished and began not in (0, now):
            self.log(
                f"this run began with {began} CPU threads and goes on with {now}: it may end in other last bits than "
                "without the stop; OMP_NUM_THREADS sets the number"
            )

    def train(self, *, shown: bool) -> None:
        """Runs the steps that are left."""
        alone = self.accelerator.num_processes == 1
        main = self.accelerator.is_main_process
        bar = TrainProgress(self.settings.steps, self.record.step, enabled=shown and main, log=self.log)
        cuda = [self.device] if self.device.type == "cuda" else []
        began = time.monotonic() - self.record.seconds
        try:
            # The caller's random numbers go on as if nothing had happened.
            with torch.random.fork_rng(devices=cuda), delayed_interrupt(self.log, enabled=alone) as stop:
                while not self.record.finished:
                    self._advance(bar, stop, began)
        finally:
            bar.close()

    def _advance(self, bar: TrainProgress, stop: StopRequest, began: float) -> None:
        """One step and what is due after it: evaluation, history, saving."""
        record, settings = self.record, self.settings
        rate = settings.rate_at(record.step)
        step_began = time.monotonic()
        value = self._step(record.step, rate)
        record.step_seconds += time.monotonic() - step_began
        record.step += 1
        record.loss_sum, record.loss_steps = record.loss_sum + value, record.loss_steps + 1
        bar.update(record.step, value, rate)
        if self.tracked:
            self.accelerator.log({"loss": value, "learning_rate": rate}, step=record.step)
        last = record.step == settings.steps
        due = self.evaluate is not None and (last or record.step % settings.evaluation_interval == 0)
        if due or last or record.step % max(1, settings.steps // 100) == 0:
            self._note(rate, self._scores() if due else {})
        record.finished = last or record.stopped_early
        record.seconds = time.monotonic() - began
        if stop.requested or record.finished or record.step % settings.save_every == 0:
            self.on_main(lambda: self.folder.save(self.module, self.optimizer, record))
        if stop.requested and not record.finished:
            self.log(
                f"stopped after step {record.step} of {settings.steps}; all of it is saved in {self.folder.folder}; "
                "run the same command again to go on from there"
            )
            raise KeyboardInterrupt

    def _step(self, step: int, rate: float) -> float:
        """One optimizer step. Returns the mean loss a unit. When it raises, the weights are those before the step."""
        accelerator, settings = self.accelerator, self.settings
        torch.manual_seed(derived_seed("step", settings.seed, step, accelerator.process_index))
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        mine = self.order.indices(step)[accelerator.process_index :: accelerator.num_processes]
        total, units = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for part in split_evenly(mine, settings.gradient_accumulation):
            if part:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    value, count = self.loss([self.examples[index] for index in part])
                accelerator.backward(value)
                total, units = total + value.detach().double(), units + count
        total, units = self._over_processes(total, units)
        mean = float(total) / units if units else math.nan
        moved = [p for p in trained_parameters(self.module).values() if p.grad is not None]
        for parameter in moved:
            parameter.grad.div_(max(1, units))  # type: ignore[union-attr]  # filtered in the line above
        norm = float(torch.nn.utils.clip_grad_norm_(moved, settings.clip_norm or math.inf))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise (DivergedError if units else FrozenLMError)(self._not_finite(step, mean, norm, units))
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        return mean

    def _over_processes(self, total: Tensor, units: int) -> tuple[Tensor, int]:
        """Sums loss, units and gradients over the processes."""
        if self.accelerator.num_processes == 1:
            return total, units
        both = torch.stack([total.float(), torch.tensor(float(units), device=self.device)])
        both = self.accelerator.reduce(both, reduction="sum")
        for parameter in trained_parameters(self.module).values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.accelerator.reduce(gradient, reduction="sum")
        return both[0], round(float(both[1]))

    def _not_finite(self, step: int, mean: float, norm: float, units: int) -> str:
        what = f"the loss is {mean} and the gradient norm {norm}; expected finite numbers"
        if not units:
            what = "no example of the batch has anything to learn from (the loss sums over 0 units)"
        saved = "the last saved state is intact" if self.folder.has_state else "no state has been saved yet"
        return (
            f"training step {step + 1}: {what}; the module holds the weights of step {step}, and {saved} in "
            f"{self.folder.folder}; look at the examples {self.order.indices(step)[:8]}, or try a lower learning_rate "
            f"(now {self.settings.learning_rate}) or precision no"
        )

    @torch.no_grad()
    def _scores(self) -> dict[str, float]:
        """What `evaluate` says of this step; `score` decides."""
        step = self.record.step
        torch.manual_seed(derived_seed("evaluate", self.settings.seed, step))
        self.module.eval()
        found = self.evaluate() if self.evaluate is not None else math.nan
        scores = {name: float(value) for name, value in found.items()} if isinstance(found, Mapping) else {}
        score = scores.get("score", math.nan) if isinstance(found, Mapping) else float(found)
        if self.accelerator.num_processes > 1:
            # Every process must take the same decision, so the first one's score counts.
            from accelerate.utils import broadcast

            score = float(broadcast(torch.tensor(score, device=self.device)))
        if math.isnan(score):
            raise FrozenLMError(
                f"evaluate returned {found} after step {step}; expected a number, higher is better, or a mapping with "
                "such a number under 'score'"
            )
        if self.tracked:
            self.accelerator.log(scores | {"score": score}, step=step)
        return scores | {"score": score}

    def _note(self, rate: float, scores: Mapping[str, float]) -> None:
        """Adds to the history, and keeps the weights when the score is the best yet. A tie keeps the earlier ones."""
        record = self.record
        entry = {"step": record.step, "loss": record.loss_sum / max(1, record.loss_steps), "learning_rate": rate}
        record.loss_sum, record.loss_steps = 0.0, 0
        record.history.append(entry | dict(scores))
        if not scores:
            return
        score = scores["score"]
        if record.best_score is None or score > record.best_score:
            record.best_step, record.best_score, record.bad_evaluations = record.step, score, 0
            self.on_main(lambda: self.folder.save_best(self.module, record.step))
        else:
            record.bad_evaluations += 1
            patience = self.settings.patience
            record.stopped_early = patience is not None and record.bad_evaluations >= patience

    def on_main(self, action: Callable[[], None]) -> None:
        """Runs an action in the first process and makes the others wait for it."""
        if self.accelerator.is_main_process:
            action()
        self.accelerator.wait_for_everyone()

    def result(self, start: int, already_trained: bool, lm: "FrozenLM | None") -> FitResult:
        """What was done, with the LM compared tensor by tensor."""
        record = self.record
        verification = None if lm is None else lm.verify()
        if verification is not None:
            self.log(str(verification))
            if verification.changed:
                raise FrozenViolationError(
                    f"{verification}: {verification.names[:5]}; training must never write to the LM; "
                    "look for in-place operations in the loss or the evaluation"
                )
        return FitResult(
            steps=record.step,
            best_step=record.best_step if self.evaluate is not None else record.step,
            best_score=record.best_score,
            history=record.history,
            seconds=record.seconds,
            step_seconds=record.step_seconds,
            resumed_from=start,
            already_trained=already_trained,
            stopped_early=record.stopped_early,
            verification=verification,
        )
