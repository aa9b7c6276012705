"""Where a model's files are: a folder, or the local copy of a Hugging Face hub id at its revision.

Only safetensors, JSON, tokenizer and template files are ever fetched: no pickles, no code.
"""

import logging
import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from opd_jax.errors import InputError

_log = logging.getLogger(__name__)

# What the hub's HTTP client raises when a connection breaks: httpx's HTTPError or that of its successor, by the
# version of huggingface_hub, whose own error is always derived from it.
_TransportError = HfHubHTTPError.__mro__[1]

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")  # org/name, with a branch, tag or commit after the @
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]  # config, tokenizer, template
_WEIGHTS = ["*.safetensors"]


def model_folder(path: str | os.PathLike, *, weights: bool) -> Path:
  """The folder of a model: `path` itself, or the local copy of the hub id `org/name[@revision]`.

  Args:
    path: a folder or a hub id.
    weights: whether the weights are wanted too; without them a hub id costs a few files.

  Raises InputError where there is neither, or the hub cannot be reached and nothing was downloaded earlier.
  """
  # os.path says no where pathlib raises: a name too long for the system, the home of nobody.
  folder = Path(os.path.expanduser(path))
  if os.path.isdir(folder):
    return folder
  if os.path.exists(folder):
    raise InputError(f"{path} is a file; give the folder that holds config.json and the safetensors files")
  if not _HUB_ID.fullmatch(str(path)):
    raise InputError(f"no such model folder: {path}; give a Hugging Face folder or a hub id `org/name@revision`")
  name, _, revision = str(path).partition("@")
  patterns = _SMALL_FILES + (_WEIGHTS if weights else [])
  try:
    options = dict(allow_patterns=patterns, ignore_patterns="*/*", etag_timeout=5)
    local = Path(snapshot_download(name, revision=revision or None, **options))
  except (_TransportError, HFValidationError, OSError) as error:
    raise InputError(
      f"no folder {path}, and the Hugging Face hub does not give it either ({type(error).__name__}): check the name "
      "and the network, or give the folder of a copy"
    ) from None
  if weights and not revision:
    _log.warning("%s: no revision given, took %s@%s; pin it to repeat this run", path, name, local.name)
  return local
