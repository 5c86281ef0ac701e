"""What a step costs on this GPU, launched and replayed, on whatever speech is there: proved before a long run.

    python -m training.recogniser.trial --tokens tokens.json --data FOLDER [FOLDER ...]

Prints, as JSON lines: whether replayed passes give the outputs and gradients of launched ones; milliseconds a step and
seconds of speech a second for batches of several sizes; the most memory that was taken; and which kernels take longest.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from training.recogniser import tokens, train
from training.recogniser.bank import Bank
from training.recogniser.losses import mixed_loss
from training.recogniser.passes import Passes, Replays
from training.recogniser.plans import pool

LESSON = 0.5
"""Clips are as long and as spoilt as late in a training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, nargs="+", default=[900, 500, 1400])
    parser.add_argument("--steps", type=int, default=50)
    trial = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bank = Bank(tokens.load(trial.tokens), device, 8)
    bank.take_new(trial.data)
    say(bank_hours=bank.hours, clips={kind: len(clips) for kind, clips in bank.kinds.items()})
    if device.type == "cuda":
        say(**compared(bank, device))
    timed(bank, device, trial.seconds[0], trial.steps, "--launched")
    for seconds in trial.seconds:
        timed(bank, device, seconds, trial.steps)
    training = begun(bank, device, trial.seconds[0], "--launched")
    for _ in range(3):
        training.advance(say)
    print(train.profile(training, say))


def begun(bank: Bank, device: torch.device, seconds: float, *more: str) -> train.Training:
    options = train.parsed(["out", "--tokens", "t", "--data", "d", "--steps", "1000000", "--warm-steps", "1000000",
                            "--batch-seconds", str(seconds), *more])  # fmt: skip
    training = train.Training(options, bank, device)
    training.lessons.began = -LESSON
    return training


def timed(bank: Bank, device: torch.device, seconds: float, steps: int, *more: str) -> None:
    torch.cuda.empty_cache()
    training = begun(bank, device, seconds, *more)
    began = time.monotonic()
    every = {plan.room: plan for plan in pool(bank, 8, 0, LESSON, seconds)}
    for plan in every.values():  # recorded here, where they are
        mel, batch = training._spoilt_batch(plan, 1.0, 0)
        mixed_loss(training.passes.forward(mel, 8), batch).backward()
        training.passes.backward()
    synchronised(device)
    first = time.monotonic() - began
    training._speech = 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    losses = []
    for _ in range(steps):
        training.step += 1
        losses.append(training._learn(0.0)[0])
    asked = time.monotonic() - began
    synchronised(device)
    took = time.monotonic() - began
    say(batch_seconds=seconds, how=" ".join(more) or "replayed", shapes=len(every), first_steps_s=round(first, 1),
        step_ms=round(took / steps * 1000, 1), processor_ms=round(asked / steps * 1000, 1),
        speed=round(training._speech / took), loss=round(float(torch.stack(losses).mean()), 3),
        **training._machine(), reserved_gb=round(torch.cuda.memory_reserved() / 1e9, 1))  # fmt: skip


def compared(bank: Bank, device: torch.device) -> dict[str, Any]:
    """Replayed against launched, without dropout, on two shapes, the first of them once more after the second."""
    training = begun(bank, device, 200, "--config", '{"dropout": 0.0}')
    launched, replayed = Passes(training.model, training._autocast), training.passes
    assert isinstance(replayed, Replays)
    plans = {plan.room: plan for plan in pool(bank, 1, 0, LESSON, 200)}
    chosen = [plans[room] for room in sorted(plans)[1:3]]
    worst = {"outputs": 0.0, "gradients": 0.0}
    for number, plan in enumerate([*chosen, chosen[0]]):
        mel, batch = training._spoilt_batch(plan, 0.7, number)
        found = []
        for way in (launched, replayed):
            said = way.forward(mel, 8 << number)
            mixed_loss(said, batch).backward()
            outputs = torch.cat([one.detach().flatten() for one in said])
            way.backward()
            found.append((outputs, torch.cat([p.grad.flatten().clone() for p in training.model.parameters()])))
        for name, here, there in zip(worst, *found, strict=True):
            worst[name] = max(worst[name], float((here - there).norm() / there.norm()))
    return {"relative_difference": worst, "refused": replayed.refused}


def synchronised(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def quiet(**figures: Any) -> None:
    pass


if __name__ == "__main__":
    main()
