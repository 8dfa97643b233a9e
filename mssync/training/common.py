"""What the trainings share: a run folder with exact resume, a clock, a moving average, a log."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mssync.errors import InputError, written_whole

WARMUP, SAVE_EVERY, SHEET_EVERY = 100, 250, 500  # steps, of `fit`
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # signals that end a run after the step under way


def launched() -> Any:
    """Fabric for this process alone, or for as many as torchrun or `fabric run` started."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    # Losses may leave parts of a model without gradients, which DDP has to be told.
    strategy: Any = DDPStrategy(find_unused_parameters=True) if world > 1 else "auto"
    fabric = Fabric(devices=local, num_nodes=world // local, strategy=strategy)
    fabric.launch()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Left to the interpreter's end, its threads may outlive what they need, and the process aborts.
        atexit.register(torch.distributed.destroy_process_group)
    return fabric


class Run:
    """A run folder: ``NAME.pt`` (everything to go on exactly), TensorBoard events, a clock.

    name: of the model; runs of several models can share a folder. max_minutes limits this call, not the whole
    run: a stopped run goes on where it was when started again. Of several processes only the first one writes.
    """

    def __init__(self, folder: str | Path, name: str, max_minutes: float | None, fabric: Any) -> None:
        self.folder, self.name, self.fabric = Path(folder), name, fabric
        self.checkpoint = self.folder / f"{name}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot make the run folder ({error.strerror})") from error
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self.interrupted = False
        self._writer: Any = None
        self._shown = self._last = 0.0

    def restore(self, parts: dict[str, Any]) -> dict[str, Any]:
        """Load the last checkpoint into parts (name: module or optimizer); return what else it holds, or {}.

        Raises InputError when the checkpoint is damaged or of another configuration.
        """
        if not self.checkpoint.exists():
            return {}
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state.pop(name))
        except Exception as error:  # whatever a damaged archive or other sizes raise
            raise InputError(
                f"{self.checkpoint}: damaged, or of another configuration; remove it or give a new --run"
            ) from error
        return state

    def save(self, parts: dict[str, Any], **numbers: float | str) -> None:
        """Write the checkpoint that `restore` reads."""
        if self.fabric.is_global_zero:
            with written_whole(self.checkpoint, ".pt") as temporary:
                torch.save({name: part.state_dict() for name, part in parts.items()} | numbers, temporary)

    def steps(self, start: int, stop: int) -> Iterator[int]:
        """Step numbers from start until stop, the end of the time, or a signal of STOPPING: then the step under way is
        finished, and `interrupted` is set."""
        import signal
        import threading

        stopped = threading.Event()
        main = threading.current_thread() is threading.main_thread()
        numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)] if main else []
        before = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
        try:
            for step in range(start, stop):
                if self._any(stopped.is_set() or time.monotonic() > self.deadline):
                    break
                yield step
            self.interrupted = self._any(stopped.is_set())
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _any(self, stop: bool) -> bool:
        """Whether any process wants to stop: all must leave the loop at the same step."""
        if self.fabric.world_size == 1:
            return stop
        return bool(self.fabric.all_reduce(torch.tensor(float(stop)), reduce_op="max") > 0)

    def log(self, step: int, values: dict[str, float], every: float = 15.0, samples: int = 0) -> None:
        """Scalars to TensorBoard, and a line on the console at most every so many seconds.

        samples: of this step, all processes together, for the throughput; 0 leaves it out.
        """
        if not self.fabric.is_global_zero:
            return
        now = time.monotonic()
        if samples and self._last:
            values = values | {"samples_per_second": samples / (now - self._last)}
        self._last = now
        from torch.utils.tensorboard import SummaryWriter

        self._writer = self._writer or SummaryWriter(str(self.folder / "events" / self.name))
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if time.monotonic() - self._shown > every:
            self._shown = time.monotonic()
            print(f"step {step:6d}  " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()), flush=True)


def write_sheet(sheet: Tensor, path: Path) -> None:
    """A picture (3, h, w) in [0, 1] to a file."""
    from PIL import Image

    Image.fromarray((sheet.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()).save(path)


def fit(
    run: Run,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Any,
    losses: Callable[[int], dict[str, Tensor]],
    evaluate: Callable[[nn.Module], tuple[dict[str, float], Tensor]],
    about: tuple[str, dict[str, Any]],
    others: dict[str, Any] | None = None,
) -> Path:
    """Train (or go on training) a network that learns alone; returns the model file in the run's folder.

    settings: steps, batch, lr, and average, the decay of the moving average that is kept; losses: of a step, to be
    summed; evaluate: figures and a sheet of the moving average; about: kind and arguments of the model file; others:
    what is kept in the checkpoint besides.
    """
    from mssync.weights import save_model

    average = Average(network, settings.average)
    kept = {"model": network, "average": average.model, "optimizer": optimizer, **(others or {})}
    step = int(run.restore(kept).get("step", 0))
    file = run.folder / f"{run.name}.safetensors"

    def save() -> None:
        run.save(kept, step=step)
        save_model(file, average.model, *about, {"steps": step})

    for at in run.steps(step, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * cosine_rate(at, settings.steps, WARMUP)
        network.train()
        found = losses(at)
        torch.stack(list(found.values())).sum().backward()
        if torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0).isfinite():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(network, at)
        step = at + 1
        run.log(at, {name: float(value.detach()) for name, value in found.items()}, samples=settings.batch)
        if step % SAVE_EVERY == 0:
            save()
        if step % SHEET_EVERY == 0:
            values, sheet = evaluate(average.model)
            print(f"step {step}  " + "  ".join(f"{k} {v:.3f}" for k, v in values.items()), flush=True)
            write_sheet(sheet, run.folder / f"{run.name}.png")
    save()
    return file


class Average:
    """Exponential moving average of a module's parameters; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        import copy

        self.model, self.decay = copy.deepcopy(model).requires_grad_(False).eval(), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # a young average forgets its start quickly
        for kept, new in zip(self.model.parameters(), model.parameters(), strict=True):
            kept.lerp_(new.detach(), 1 - decay)
        for old, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            old.copy_(buffer)


def ramp(step: int, start: int, stop: int) -> float:
    """0 up to start, 1 from stop on, linear between."""
    return min(max((step - start) / max(stop - start, 1), 0.0), 1.0)


def cosine_rate(step: int, total: int, warmup: int, final: float = 0.05) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to `final`."""
    import math

    if step < warmup:
        return (step + 1) / warmup
    at = ramp(step, warmup, total)
    return final + (1 - final) * (1 + math.cos(math.pi * at)) / 2
