"""Engines on one GPU beside PyTorch: `python -m benchmarks.gpu --torch-python python3 --work FOLDER`.

    __main__        what runs when, and the report
    rows            the rows of the table, and what their figures mean
    prepare         checkpoints and inputs that every competitor reads
    children        a competitor's process: its environment, its time limit, what it said last
    ours            our own side, `measure(row, work)`; `ours_process` is its process
    torch_native    PyTorch's side, under another interpreter; it never imports aula
    torch_device    device time, CUDA graphs, the machine's limits
    torch_bert      BERT's variants
    torch_pictures  EfficientNet's variants
    torch_whisper   Whisper's variants
    torch_by_hand   Whisper's greedy loop written for CUDA graphs
    flight          how many recognitions can be in flight
    parity          do the competitors say the same?
    table           ratios, floors, and the table for people

Limits first: weights are seeded, except the digits that EfficientNet reads; inputs lie on the device before the clock
starts (save for `in-flight`, which copies sound in and text out); one card, one host, one run.
"""
