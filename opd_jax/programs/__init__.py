"""Every jitted function of a run, in one table."""

from opd_jax.programs.cache import use_compilation_cache
from opd_jax.programs.table import Compile, ProgramTable, unplanned_compiles

__all__ = ["Compile", "ProgramTable", "unplanned_compiles", "use_compilation_cache"]
