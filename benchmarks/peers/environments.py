"""The peers, each in a virtual environment of its own, with pinned versions; made on first use and kept.

    python -m benchmarks.peers.environments [--folder=.cache/peers]         a few minutes, 3 GB

Whoever measures makes what it needs by itself; this command is for making all of it beforehand.
"""

import subprocess
import sys
from pathlib import Path

from absl import app, flags

_FOLDER = flags.DEFINE_string("folder", ".cache/peers", "Environments and weights; made on first use.")

PINNED = {
  "trl": ("trl==1.16.0", "torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0"),
  "tunix": ("google-tunix==0.1.7", "jax==0.10.2", "flax==0.12.8"),
}


def folder() -> Path:
  return Path(_FOLDER.value).absolute()


def interpreter(name: str) -> str:
  """The Python of an environment: ours is the one that runs this, a peer's is installed where it is not there yet."""
  if name == "opd_jax":
    return sys.executable
  environment = folder() / name
  python, installed = environment / "bin" / "python", environment / "installed.txt"
  wanted = "\n".join(PINNED[name]) + "\n"
  if not installed.exists() or installed.read_text() != wanted:
    print(f"installing {', '.join(PINNED[name])} in {environment}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", *PINNED[name]], check=True)
    installed.write_text(wanted)
  return str(python)


def main(_) -> None:
  for name in PINNED:
    print(interpreter(name))


if __name__ == "__main__":
  app.run(main)
