"""A run before it exists: what it would compile, what each program needs, whether it fits, and what to change.

subject     the architectures and the mesh of the run, from config.json files alone
compiled    what the compiler and the jaxpr say of one program: memory, work, collectives, time
hlo         reading compiled text: trip counts, collectives, cycles
footprint   bytes of one chip by role, and a model of the temporaries that compiles nothing
search      the change that makes a run fit, found by that model
verdict     the plan as one object, as a table and as JSON

Used by `python -m opd_jax.plan`.
"""

from opd_jax.planning.verdict import Verdict, make_plan

__all__ = ["Verdict", "make_plan"]
