"""Engines on one GPU beside PyTorch: `python -m benchmarks.gpu --torch-python python3 --work FOLDER`.

    __main__        what runs when, and the report
    prepare         seeded checkpoints and inputs that every competitor reads
    children        a competitor's process: its environment, its time limit, what it said last
    engines         builds the engines of our side, once
    ours            our own side, `measure(row, work)`; `ours_process` is its process
    rows, flight    what our side's rows are, and how many recognitions it has in flight
    torch_native    PyTorch's side, under another interpreter; with torch_timing and torch_whisper it never imports aula
    floors          what a row cannot do without, and how long that takes at best
    table           best variants, ratios, targets, parity, and the table for people

Limits first: weights are made up; inputs lie on the device before the clock starts; one card, one host, one run.
"""
