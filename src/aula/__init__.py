"""aula: real-time AI for the classroom. Floors, lowest first; an import goes down or stays in its folder.

core          0  the vocabulary: errors, records, clock, settings
audio         1  samples in and out: decode, resample, record, play; knows no model
backends      1  run a graph; know no model
engine        2  make engines from recipes
models        3  meaning around tensors: hand a recipe down, offer a capability up
runtime.py    4  joins models and serves capabilities
assistant     5  the lesson; sees models only through the runtime
diagnosis.py  5  what this machine can run, and what to install for more
servers       6  the doors: OpenAI REST and Realtime, the Open Inference Protocol, pages
cli           7  parse, call one library function, print
__main__.py   8  starts the command
"""

__version__ = "0.1.0"
