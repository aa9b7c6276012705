"""A run before it exists: what it would compile, what each program needs, whether it fits, and what to change.

subject     the architectures and the mesh of the run, from config.json files alone
compiled    what the compiler and the jaxpr say of one program: memory, work, collectives, time
hlo         reading compiled text: trip counts, collectives, cycles
footprint   bytes of one chip by role, and a model of the temporaries that compiles nothing
search      the change that makes a run fit, found by that model
verdict     the plan as one object, as a table and as JSON

width_costs   seconds of the programs of one bucket width, predicted or measured
cost_fit      from those of a few widths to those of all
policies      ways to choose buckets, for one schedule, against an oracle
comparison    all of them for all schedules, as a table and as JSON

Used by `python -m opd_jax.plan`.
"""

from opd_jax.planning.comparison import Comparison, compare_buckets
from opd_jax.planning.verdict import Verdict, make_plan

__all__ = ["Comparison", "Verdict", "compare_buckets", "make_plan"]
