"""Engines on one GPU beside PyTorch: `python -m benchmarks.gpu --torch-python python3 --work FOLDER`.

    __main__        what runs when, and the report
    prepare         seeded checkpoints and inputs that every competitor reads
    children        a competitor's process: its environment, its time limit, what it said last
    ours            our own side, in a process of its own
    torch_native    PyTorch's side, under another interpreter; with torch_timing and torch_whisper it never imports aula
    table           best variants, ratios, targets, parity, and the table for people

Limits first: weights are made up; inputs lie on the device before the clock starts; one card, one host, one run.
"""
