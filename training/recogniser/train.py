"""Trains the recogniser on one GPU; stops at a limit of minutes and goes on from there when it is called again.

    python -m training.recogniser.train OUT --tokens tokens.json --data FOLDER [FOLDER ...] --dev FOLDER \
        --total-minutes 14 --minutes 8

OUT gets log.jsonl (every figure), last.pt (all that is needed to go on) and weights-*.safetensors with config.json (the
moving average, what ships). Two runs of the same seed and steps on the same shards are the same, interrupted or not.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.recogniser import evaluate, schedule, tokens, weights
from training.recogniser.augment import Augmenter
from training.recogniser.bank import Bank, Batch
from training.recogniser.features import RATE, log_mel
from training.recogniser.losses import agreement, guided_loss, mixed_loss
from training.recogniser.model import Config, Recogniser, parameters
from training.recogniser.passes import Replays, passes
from training.recogniser.plans import Draws, Plan, pool

CHUNKS = (8, 8, 8, 8, 16, 32)
"""Output frames heard at once, drawn for every step: mostly 320 ms, as a stream, sometimes more."""

LOG_EVERY = 50
PROFILED_STEP = 60
WATCH_EVERY = 20
PATIENCE_SECONDS = 90
"""How long the first step waits for speech that is still being synthesised; a GPU that waits longer learns nothing."""


def main() -> None:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    torch.backends.cuda.matmul.allow_tf32 = True
    device = torch.device(options.device)
    tokenizer = tokens.load(options.tokens)
    # 1. Speech: what is there now; more may come while we train.
    bank = Bank(tokenizer, device, options.capacity_hours)
    while bank.hours < options.least_hours:
        if not bank.take_new(options.data):
            time.sleep(1)
        if time.monotonic() - began > PATIENCE_SECONDS:
            if not bank.hours:
                raise SystemExit(f"no speech in {options.data} after a minute and a half: start the workers")
            print(f"no more than {bank.hours:.2f} h of speech yet, rather than {options.least_hours}: going on")
            break
    bank.take_new(options.data)
    log = Log(options.out / "log.jsonl")
    log(event="bank", hours=round(bank.hours, 2), clips={kind: len(clips) for kind, clips in bank.kinds.items()},
        seconds=round(time.monotonic() - began, 1))  # fmt: skip

    # 2. The model, new or as it was left.
    training = Training(options, bank, device)
    if (options.out / "last.pt").exists():
        training.restore(torch.load(options.out / "last.pt", map_location=device, weights_only=False))
        log(event="resumed", step=training.step, minutes=round(training.seconds / 60, 2))
    elif options.start_from:
        training.start_from(options.start_from)
        log(event="started from", step=training.step, minutes=round(training.seconds / 60, 2))
    log(event="model", parameters=parameters(training.model), options={k: str(v) for k, v in vars(options).items()})

    # 3. Steps.
    limit = began + options.minutes * 60
    evaluated = time.monotonic()
    while not training.finished and time.monotonic() < limit:
        if options.profile and training.step == PROFILED_STEP:
            (options.out / "profile.txt").write_text(profile(training, log), "utf-8")
        training.advance(log)
        if training.step % WATCH_EVERY == 0:
            bank.take_new(options.data, most=8)
        if time.monotonic() - evaluated > options.evaluate_every * 60:
            report(training, tokenizer, options.dev, log)
            training.export(options.out)  # so that a machine that is lost does not take everything with it
            evaluated = time.monotonic()
    # 4. Leave everything in order.
    torch.save(training.state(), options.out / "last.pt")
    training.export(options.out)
    if time.monotonic() - evaluated > 5:
        report(training, tokenizer, options.dev, log)
    log(event="finished" if training.finished else "stopped", step=training.step, hours=round(bank.hours, 2),
        minutes=round(training.seconds / 60, 2), wall=round((time.monotonic() - began) / 60, 2))  # fmt: skip


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--dev", type=Path, nargs="*", default=[])
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--total-minutes", type=float, help="of training, all calls together")
    length.add_argument("--steps", type=int, help="instead: so many steps, the same on every machine")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop this call after so long, to go on in another")
    parser.add_argument("--batch-seconds", type=float, default=900)
    parser.add_argument("--views", type=int, default=2, help="how often a batch holds each clip, each time spoilt anew")
    parser.add_argument("--launched", action="store_true", help="no CUDA graphs: every kernel launched by itself")
    parser.add_argument("--decay", type=float, default=0.05, help="of the weights")
    parser.add_argument("--peak", type=float, default=1.5e-3)
    parser.add_argument("--warm-steps", type=int, default=600)
    parser.add_argument("--guided-steps", type=int, default=1200, help="with a guess at where each unit is said")
    parser.add_argument(
        "--average", type=float, default=0.999, help="how slowly the moving average of the weights moves"
    )
    parser.add_argument("--capacity-hours", type=float, default=200)
    parser.add_argument("--least-hours", type=float, default=0.0, help="wait for so much speech before the first step")
    parser.add_argument("--evaluate-every", type=float, default=1.5, help="minutes")
    parser.add_argument("--start-from", type=Path, help="a folder of exported weights, where last.pt was lost")
    parser.add_argument("--config", type=json.loads, default={}, help='changes to the model, as {"blocks": 2}')
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument(
        "--profile", action="store_true", help=f"where the time goes, at step {PROFILED_STEP}: profile.txt"
    )
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


class Training:
    """The model, its moving average and everything that a step changes."""

    def __init__(self, options: argparse.Namespace, bank: Bank, device: torch.device) -> None:
        torch.manual_seed(options.seed)
        self.options, self.bank, self.device = options, bank, device
        self.config = replace(Config(), **options.config)
        self.model = Recogniser(self.config).to(device)
        self.average = Recogniser(self.config).to(device).eval().requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": options.decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        minutes = options.total_minutes
        self.schedule = schedule.Schedule(options.peak, options.warm_steps, options.steps, minutes and minutes * 60)
        self.augmenter = Augmenter(device)
        self.passes = passes(self.model, self._autocast, device, replayed=not options.launched)
        self.draws = Draws(bank, options.seed, options.batch_seconds)
        self.lessons = schedule.Lessons()
        self.step = 0
        self.seconds = 0.0
        self._warmed_from = 0
        self._recent: list[Tensor] = []
        self._speech = 0.0
        self._clock = time.monotonic()

    @property
    def progress(self) -> float:
        return self.schedule.progress(self.step, self.seconds)

    @property
    def finished(self) -> bool:
        return self.progress >= 1

    def advance(self, log: Callable[..., None]) -> None:
        """One step. All that is random in it follows from the seed and its number."""
        began = time.monotonic()
        if self.step == 0:
            self._measure_features()
        progress = self.progress
        loss, norm = self._learn(progress)
        self._recent.append(torch.stack((loss, norm)))
        self.step += 1
        if self.step % LOG_EVERY == 0:
            mean = torch.stack(self._recent).double().mean(0).tolist()
            self.lessons.heed(mean[0], progress)
            now = time.monotonic()
            log(step=self.step, progress=round(progress, 4), lesson=round(self.lessons.at(progress), 4),
                loss=round(mean[0], 4), gradient=round(mean[1], 3),
                rate=self.optimiser.param_groups[0]["lr"], minutes=round(self.seconds / 60, 3),
                step_ms=round((now - self._clock) / len(self._recent) * 1000, 1),
                speed=round(self._speech / (now - self._clock)), bank_hours=round(self.bank.hours, 2),
                **self._machine())  # fmt: skip
            self._recent, self._speech, self._clock = [], 0.0, now
        self.seconds += time.monotonic() - began

    def _machine(self) -> dict[str, Any]:
        if not isinstance(self.passes, Replays):
            return {}
        refused = {"refused": self.passes.refused} if self.passes.refused else {}
        return {"graphs": len(self.passes), "gb": round(torch.cuda.max_memory_allocated() / 1e9, 1), **refused}

    def _learn(self, progress: float) -> tuple[Tensor, Tensor]:
        """CTC's loss alone, and the gradient's norm."""
        torch.manual_seed((self.options.seed << 32) + self.step)
        chunk = CHUNKS[int(torch.randint(len(CHUNKS), ()))]
        lesson = self.lessons.at(progress)
        mel, batch = self._spoilt_batch(self.draws.next(lesson), schedule.strength(lesson), self.step)
        said = self.passes.forward(mel, chunk)
        loss = heard = mixed_loss(said, batch)
        if self.options.views > 1 and (weight := schedule.agreement(lesson)) > 0:
            loss = loss + weight * agreement(said, batch, self.options.views)
        if (share := schedule.guidance(self.step, self.options.guided_steps)) > 0:
            loss = (1 - share) * loss + share * guided_loss(said, batch)
        loss.backward()
        self.passes.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        # A step whose gradient is not finite is left out by the optimiser itself, without asking the GPU about it.
        self.optimiser.found_inf = (~norm.isfinite()).float()
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(self.step - self._warmed_from, progress)
        self.optimiser.step()
        self._move_average()
        self._speech += batch.sound.numel() / RATE / self.options.views
        return heard.detach(), norm.detach()

    def _spoilt_batch(self, plan: Plan, strength: float, number: int) -> tuple[Tensor, Batch]:
        dice = torch.Generator(self.device).manual_seed((self.options.seed << 32) + number)
        batch = self.bank.batch(plan).repeated(self.options.views)
        sound = self.augmenter.spoilt(batch.sound, strength, dice)
        mel = log_mel(sound, self.augmenter.filters(len(sound), strength, dice))
        return self.augmenter.masked(mel, strength, dice), batch

    def _measure_features(self) -> None:
        """Mean and spread of each mel bin, over batches as they are late in the training."""
        mels = [
            self._spoilt_batch(plan, 0.7, 0)[0].flatten(0, 1)
            for plan in pool(self.bank, self.options.seed, 0, 1, 60)[:16]
        ]
        flat = torch.cat(mels)
        for model in (self.model, self.average):
            model.mean.copy_(flat.mean(0))
            model.scale.copy_(1 / flat.std(0).clamp_min(0.1))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    @torch.no_grad()
    def _move_average(self) -> None:
        keep = min(self.options.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(), "draws": self.draws.state(), "step": self.step,
            "seconds": self.seconds, "warmed_from": self._warmed_from, "recent": self._recent,
            "lessons": self.lessons.began,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.draws.restore(state["draws"], len(self.bank.starts))
        self.step, self.seconds, self._warmed_from = state["step"], state["seconds"], state["warmed_from"]
        self._recent = state["recent"]
        self.lessons.began = state["lessons"]

    def start_from(self, folder: Path) -> None:
        """From exported weights: the optimiser has forgotten, so the rate warms up again."""
        exported = weights.load(folder).state_dict()
        notes = json.loads((folder / "config.json").read_text("utf-8"))
        self.model.load_state_dict(exported)
        self.average.load_state_dict(exported)
        self.step = self._warmed_from = notes["step"]
        self.seconds = notes["seconds"]
        self.lessons.began = notes["lessons"]
        self.draws = Draws(self.bank, self.options.seed + self.step, self.options.batch_seconds)

    def export(self, folder: Path) -> None:
        notes = {"step": self.step, "seconds": self.seconds, "seed": self.options.seed, "bank_hours": self.bank.hours,
                 "lessons": self.lessons.began}  # fmt: skip
        weights.save(folder, self.config, self.average.state_dict(), notes)


class Log:
    """Figures as JSON lines, in a file and on the screen."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", encoding="utf-8")

    def __call__(self, **figures: Any) -> None:
        line = json.dumps(figures)
        print(line, flush=True)
        self._file.write(line + "\n")
        self._file.flush()


def report(training: Training, tokenizer: Tokenizer, folders: list[Path], log: Callable[..., None]) -> None:
    """Word error rates of the moving average on the dev folders, and three examples."""
    if not folders:
        return
    began = time.monotonic()
    heard = list(evaluate.hear(training.average, tokenizer, folders, training.device, training.config.chunk))
    log(event="dev", step=training.step, seconds=round(time.monotonic() - began, 1),
        wer={group: round(wer, 4) for group, (wer, _, _) in evaluate.groups(heard).items()},
        examples=[[one.clip.text, one.text] for one in heard[:: max(1, len(heard) // 3)]][:4])  # fmt: skip


def profile(training: Training, log: Callable[..., None]) -> str:
    """Three steps under PyTorch's profiler, as a table of kernels."""
    with torch.profiler.profile() as seen:
        for _ in range(3):
            training.advance(log)
    order = "self_device_time_total" if training.device.type == "cuda" else "self_cpu_time_total"
    table: str = seen.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    return table


if __name__ == "__main__":
    main()
