"""Engines on one GPU beside PyTorch: `python -m benchmarks.gpu --torch-python python3 --work FOLDER`.

    __main__        what runs when, and the report
    rows            the rows of the table, for all that follow
    prepare         seeded checkpoints and inputs that every competitor reads
    children        a competitor's process: its environment, its time limit, what it said last
    jobs, engines   what builds the engines of our side, and the building
    ours            our own side, `measure(row, work)`; `ours_process` is its process
    torch_native    PyTorch's side, under another interpreter; with torch_timing and torch_whisper it never imports aula
    flight          how many recognitions are in flight in time, counted in one way for both sides
    floors          what a row cannot do without, and how long that takes at best
    table           best variants, ratios, targets, parity, and the table for people

Limits first: weights are made up; inputs lie on the device before the clock starts; one card, one host, one run.
"""
