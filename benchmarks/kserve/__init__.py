"""What the door of the Open Inference Protocol costs beyond the engine behind it: `python -m benchmarks.kserve`."""
