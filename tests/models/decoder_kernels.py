"""What the kernels of backends/kernels/decoder.cu compute, in numpy and float64: plain, and by their arguments alone.

With these a program is run whole on a machine without a GPU, so that its order, its sizes and its addresses are tested;
whether the CUDA code computes the same is for tests/gpu to say.
"""

from collections.abc import Mapping
from math import erf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.backends.fake_driver import Kernel, Memory

Values = tuple[int, ...]
Grid = tuple[int, int, int]
BEST = np.dtype([("highest", "<f4"), ("index", "<i4"), ("sum", "<f4")])
_erf = np.vectorize(erf)


def _embed(memory: Memory, numbers: list[str], values: Values, grid: Grid) -> None:
    count, slots, hidden = map(int, numbers)
    lines = grid[0]
    rows = lines // count
    text, position = memory(values[0], "i4", rows, slots), memory(values[1], "i4", rows)
    x = memory(values[4], "f4", lines, hidden)
    for line in range(lines):
        slot = min(int(position[line // count]) + line % count, slots - 1)
        token = int(text[line // count, slot])
        x[line] = memory(values[2] + 2 * token * hidden, "f2", hidden).astype("f4")
        x[line] += memory(values[3] + 2 * slot * hidden, "f2", hidden)


def _normal(x: NDArray[Any]) -> NDArray[Any]:
    centred = x - x.mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5))


def _walk(memory: Memory, numbers: list[str], values: Values, grid: Grid) -> None:
    lines, out, taken, columns, split, warps = map(int, numbers[:6])
    norm, then, (heads, size, slots, count, apart) = numbers[6] == "true", numbers[7], map(int, numbers[8:])
    share = taken // split
    assert share % (256 if share % 256 == 0 else 128) == 0, "a warp reads whole chunks"
    assert grid[0] * (warps // split) * columns >= out, "every output has a warp"
    assert then != "CHOOSE" or count == 1 or lines * count == lines * count
    given_lines = lines * count if then == "CHOOSE" else lines
    given = memory(values[2], "f4" if norm else "f2", given_lines, taken).astype("f8")
    given = _normal(given) if norm else given
    _end(
        memory,
        then,
        given,
        (lines, out, taken, heads, size, slots, count, apart),
        values,
        warps * columns,
        grid[0],
        None,
    )


def _tile(memory: Memory, numbers: list[str], values: Values, grid: Grid) -> None:
    lines, out, taken, tall, wide, down, across, _stages, pieces = map(int, numbers[:9])
    then, (heads, size, slots, count, apart) = numbers[9], map(int, numbers[10:])
    assert taken // pieces % 64 == 0
    assert tall % (16 * down) == 0
    assert wide % (8 * across) == 0
    assert grid[0] * tall >= lines
    assert grid[1] * wide >= out
    assert grid[2] == pieces
    given = memory(values[2], "f2", lines * count if then == "CHOOSE" else lines, taken).astype("f8")
    _end(memory, then, given, (lines, out, taken, heads, size, slots, count, apart), values, wide, grid[1], pieces)


def _end(
    memory: Memory,
    then: str,
    given: NDArray[Any],
    sizes: tuple[int, ...],
    values: Values,
    part: int,
    parts: int,
    pieces: int | None,
) -> None:
    lines, out, taken, heads, size, slots, count, apart = sizes
    matrix = memory(values[0], "f2", out, taken).astype("f8")
    hidden = heads * size
    shift = memory(values[1], "f4", out).astype("f8") if values[1] else np.zeros(out)
    if then == "CHOOSE":
        last = given[count - 1 :: count]
        position, prompt = memory(values[5], "i4", lines), memory(values[6], "i4", lines)
        rules = memory(values[7], "f4", 2, out).astype("f8")
        logits = last @ matrix.T + rules[np.where(position + count == prompt, 0, 1)]
        _best_of_parts(memory(values[8], BEST, lines, parts), logits, part)
        return
    if then == "ANSWER":
        rule = memory(values[9], "i4", lines)
        rules = memory(values[7], "f4", int(rule.max()) + 1, out).astype("f8")
        sums = given @ matrix.T
        memory(values[10], "f4", lines, out)[...] = sums + rules[0]
        _best_of_parts(memory(values[8], BEST, lines, parts), sums + rules[rule], part)
        return
    if then == "ADD" and pieces is not None:
        made, share = memory(values[3], "f4", pieces, lines, out), taken // pieces
        for piece in range(pieces):
            some = slice(piece * share, (piece + 1) * share)
            made[piece] = given[:, some] @ matrix[:, some].T
        return
    sums = given @ matrix.T + shift
    if then == "ADD":
        memory(values[3], "f4", lines, out)[...] += sums
    elif then == "GELU":
        memory(values[3], "f2", lines, out)[...] = 0.5 * sums * (1 + _erf(sums * np.sqrt(0.5)))
    elif then == "KEEP":
        memory(values[3], "f2", lines, out)[...] = sums
    else:
        assert then == "TO_CACHE"
        memory(values[3], "f2", lines, hidden)[...] = sums[:, :hidden]
        rows = lines // count
        position = memory(values[5], "i4", rows)
        for line in range(lines):
            row = line // count
            slot = int(position[row]) + line % count
            if slot < slots:
                cache = memory(values[4] + row * apart * 4 * hidden * slots, "f2", 2 * heads, slots, size)
                cache[:, slot] = sums[line, hidden:].reshape(2 * heads, size)


def _best_of_parts(best: NDArray[Any], logits: NDArray[Any], part: int) -> None:
    begins = np.arange(0, logits.shape[1], part)
    best["highest"] = np.maximum.reduceat(logits, begins, axis=1)
    lifted = np.repeat(best["highest"].astype("f8"), np.diff([*begins, logits.shape[1]]), axis=1)
    best["sum"] = np.add.reduceat(np.exp(logits - lifted), begins, axis=1)
    for line, row in enumerate(logits):
        best["index"][line] = [begin + row[begin : begin + part].argmax() for begin in begins]


def _attend(memory: Memory, numbers: list[str], values: Values, grid: Grid) -> None:
    count, heads, size, keys = map(int, numbers[:4])
    causal, rows, stride = numbers[5] == "true", grid[1], values[4]
    assert grid[0] == heads
    lengths = memory(values[3], "i4", rows)
    queries = memory(values[0], "f2", rows, count, heads, size).astype("f8")
    mixed = memory(values[5], "f2", rows, count, heads, size)
    for row in range(rows):
        k, v = (memory(values[side] + 2 * row * stride, "f2", heads, keys, size).astype("f8") for side in (1, 2))
        for line in range(count):
            length = min(int(lengths[row]) + line + 1 if causal else int(lengths[row]), keys)
            scores = np.einsum("hs,hks->hk", queries[row, line], k[:, :length])
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[row, line] = np.einsum("hk,hks->hs", shares / shares.sum(axis=1, keepdims=True), v[:, :length])


def _add_and_norm(memory: Memory, numbers: list[str], values: Values, grid: Grid) -> None:
    lines, hidden, pieces, warps = map(int, numbers)
    assert grid[0] * warps >= lines
    assert hidden % 128 == 0
    x = memory(values[2], "f4", lines, hidden)
    if pieces:
        x += memory(values[1], "f4", hidden) + memory(values[0], "f4", pieces, lines, hidden).sum(axis=0)
    memory(values[3], "f2", lines, hidden)[...] = _normal(x.astype("f8"))


def _choose(memory: Memory, numbers: list[str], values: Values, grid: Grid) -> None:
    count, slots, parts, _warps = map(int, numbers)
    rows = grid[0]
    best, prompt = memory(values[0], BEST, rows, parts), memory(values[1], "i4", rows)
    text, position = memory(values[2], "i4", rows, slots), memory(values[3], "i4", rows)
    likely = memory(values[4], "f4", rows, slots)
    for row in range(rows):
        highest = best["highest"][row].max()
        index = best["index"][row][best["highest"][row] == highest].min()
        total = (best["sum"][row] * np.exp(best["highest"][row] - highest)).sum()
        behind = int(position[row]) + count
        if behind < slots:
            if behind >= prompt[row]:
                text[row, behind] = index
            likely[row, behind] = -np.log(total)
        position[row] = min(behind, slots - 1)


def _reply(memory: Memory, numbers: list[str], values: Values, grid: Grid) -> None:
    count, slots, parts, _warps, tokens = map(int, numbers)
    lines, rows = grid[0], grid[0] // count
    best = memory(values[0], BEST, lines, parts)
    text, position = memory(values[1], "i4", rows, slots), memory(values[2], "i4", rows)
    likely = memory(values[3], "f4", rows, slots)
    following, logprob = memory(values[4], "i4", lines), memory(values[5], "f4", lines)
    for line in range(lines):
        highest = best["highest"][line].max()
        index = int(best["index"][line][best["highest"][line] == highest].min())
        assert index < tokens
        total = (best["sum"][line] * np.exp(best["highest"][line] - highest)).sum()
        following[line], logprob[line] = index, -np.log(total)
    for row in range(rows):
        behind, last = int(position[row]) + count, row * count + count - 1
        if behind < slots:
            text[row, behind], likely[row, behind] = following[last], logprob[last]
        position[row] = min(behind, slots - 1)


KERNELS: Mapping[str, Kernel] = {
    "EMBED": _embed,
    "WALK": _walk,
    "TILE": _tile,
    "ATTEND": _attend,
    "NORM": _add_and_norm,
    "CHOICE": _choose,
    "REPLY": _reply,
}
