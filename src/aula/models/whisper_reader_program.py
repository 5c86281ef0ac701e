"""Whisper's reader (`whisper_reader`) as a program of our own kernels: what a GPU serves.

At most FEW_LINES lines, by the same walks whatever their number: a row's sums are added in the same order whether it is
read alone or beside others, token by token or several at once. So neither neighbours nor drafts change a text.
"""

from collections.abc import Mapping

from aula.backends.kernel_program import At, Program
from aula.core.errors import EngineError
from aula.core.types import Float32, TensorSpec
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_program import FEW_LINES, SIZE, Few, Step, gpu_of
from aula.models.whisper_stepper import NEXT
from aula.models.whisper_tokens import RULES


def write_reader_program(
    config: WhisperConfig, weights: Mapping[str, Float32], step: Step, capability: str = "9.0"
) -> Program:
    """Raises EngineError for more lines than are walked, and for what the kernels are not made for."""
    if step.lines > FEW_LINES or not step.apart:
        raise EngineError(
            f"a reader has at most {FEW_LINES} lines, of rows that lie apart, not {step}",
            next_step="read fewer tokens at once",
        )
    return _Reader(config, weights, step, gpu_of(config, capability)).write()


class _Reader(Few):
    rules = tuple(range(len(RULES)))

    def head(self) -> None:
        """The answer after every line."""
        step, columns, tokens = self.step, self.head_columns, self.config.vocab_size
        parts = -(-tokens // (4 * columns))
        matrix, rules = self.vocabulary()
        best = self.scratch_of("best", 12 * step.lines * parts)
        numbers = f"{step.lines}, {tokens}, {self.hidden}, {columns}, 1, 4, true, ANSWER"
        taken = (matrix, None, At("x"), None, None, None, None, rules, best, At("rule"), At("logits"))
        self.launch("head", f"WALK(head, {numbers}, {self.tail()})", (parts,), 4, *taken)
        self.products += 1
        warps = 32 if parts > 512 else 8
        told = (best, At("text"), At("position"), At("likely"), At("next"), At("logprob"))
        reply = f"REPLY(reply, {step.count}, {step.slots}, {parts}, {warps}, {tokens})"
        self.launch("reply", reply, (step.lines,), warps, *told)

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        step, config = self.step, self.config
        rows, layers, heads = step.rows, config.decoder_layers, config.decoder_attention_heads
        states = (
            TensorSpec("text", "int32", (rows, step.slots)),
            TensorSpec("position", "int32", (rows,)),
            TensorSpec("likely", "float32", (rows, step.slots)),
            TensorSpec("self_kv", "float16", (rows, layers, 2 * heads, step.slots, SIZE)),
        )
        cross = (rows, layers, heads, step.positions, SIZE)
        given = (
            TensorSpec("rule", "int32", (rows, step.count)),
            TensorSpec("heard", "int32", (rows,)),
            TensorSpec("cross_k", "float16", cross),
            TensorSpec("cross_v", "float16", cross),
        )
        answers = (
            TensorSpec("next", "int32", (rows, step.count)),
            TensorSpec("logprob", "float32", (rows, step.count)),
            TensorSpec("logits", "float32", (rows, step.count, config.vocab_size)),
        )
        made = tuple(TensorSpec(spec.name + NEXT, spec.dtype, spec.shape) for spec in states)
        return (*states, *given), (*made, *answers)
