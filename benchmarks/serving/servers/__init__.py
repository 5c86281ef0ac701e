"""Programs that serve one engine, each run by an interpreter that has its library; none imports another file of ours.

    python FILE ENGINE PORT BATCH

BATCH 1 means no batching. POST / with {"x": [64 numbers]} answers {"y": [64 numbers]}.
"""
