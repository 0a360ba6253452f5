"""One module a probe: `lm probe RUN NAME` finds the module of that name here. Each holds, in this order,

a first line `name ARGUMENTS: what it shows`, from which `lm probe` lists it;
`Options`, what the command takes (lm/probe/options.py has what probes share);
the computation, as a public function of a model that Python may call;
`run(m, options) -> Report`, which calls it and makes tables; and the figure.
"""
