"""Floor 2: models in threads of their own, behind one scheduler for each group of workers. Knows no model by name.

places   a rung with its thread, its model and its history
threads  one thread that runs what it is given, in turn
tasks    what is run: one kind of work for each call of a capability
costs    what a model costs, measured when it is loaded
rules    what an operator decides
group    rungs that share workers, and the scheduler before them
live     streams, whose every chunk waits its turn
usage    who used how much of late
memory   what is in use on the host and its GPUs
alarm    what happens at a moment of the clock
"""
