"""Floor 2: models in threads of their own, behind one scheduler for each group of workers. Knows no model by name.

places     a rung with its thread, its model and its history
threads    one thread that runs what it is given, in turn
tasks      what is run: one kind of work for each call of a capability
tensors    engines as they are: what may come in, and what may run together
costs      what a model costs, measured when it is loaded
rules      what an operator decides
ways       ladders, routes and costs of a group
group      rungs that share workers, and the scheduler before them
requests   what is asked for, and whether it can be
records    what a runtime tells of itself
ladders    a ladder as an operator sees it
live       streams, whose every chunk waits its turn
usage      who used how much of late
residence  which model lives where: loading, making room, letting go
budget     what is loaded, what a load would need, who makes room
swap       another model takes a rung's place
memory     what is in use on the host and its GPUs
alarm      what happens at a moment of the clock
"""
