"""int8+bf16: the int8 graph once more, with BF16 arithmetic for what is not int8 in it.

In a Whisper encoder attention, norms and activations are not int8: a quarter of its time for 6 s of sound, more for 30.
Where a processor multiplies BF16 (AVX512_BF16, AMX) they can be computed, and handed on, in half the width.
"""

from collections.abc import Sequence
from dataclasses import replace

from aula.backends.session import available_backends, computes
from aula.core.errors import EngineError
from aula.engine.precision import Progress
from aula.engine.targets import MIXED
from aula.engine.trial import Prover, Trial


def mixed_trials(prover: Prover, trials: Sequence[Trial], report: Progress) -> list[Trial]:
    """Trials of int8+bf16 on the backends on which int8 passed, and that have BF16 on this processor. They are held to
    int8's gate, and to its distance from the reference."""
    plain = [trial for trial in trials if trial.variant.precision == "int8"]
    again = []
    for trial in plain:
        if trial.rejected is None and computes(trial.backend, "bf16"):
            report(f"proving {MIXED} on {trial.backend}", 0.8)
            again.append(prover.prove(trial.backend, replace(trial.variant, precision=MIXED)))
    return prover.agreed([*plain, *again])[len(plain) :]


def require_bf16() -> None:
    """Raises EngineError where int8+bf16 can be built by no backend on this processor."""
    if not any(computes(backend, "bf16") for backend in available_backends()):
        raise EngineError(
            f"no backend here computes {MIXED}: this processor has no BF16 arithmetic, or openvino is not installed",
            available=("fp32", "int8"),
            next_step="build plain int8 on this machine: aula build MODEL --precision int8",
        )
