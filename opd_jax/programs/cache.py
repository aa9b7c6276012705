"""XLA's persistent compilation cache: what was compiled once on this machine is read back in the next process."""

import os
from pathlib import Path

import jax


def use_compilation_cache(folder: str | os.PathLike) -> None:
  """Keeps executables in `folder`, small ones too. `JAX_COMPILATION_CACHE_DIR`, if set, wins."""
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).absolute()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
