"""The edge between a shell and a run: flags in, one line and exit status 2 for bad input out.

`--config=FILE[:arg]` names a Python file with `get_config(arg="")`; `--config.a.b=value` changes a field
(`ml_collections.config_flags`, the convention of big_vision and the flax examples). absl ends with status 1 on a bad
flag and with a traceback on a config file that raises; here both are bad input like any other.
"""

import contextlib
import dataclasses
import errno
import functools
import importlib.machinery
import importlib.util
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

from opd_jax import config as configs
from opd_jax.errors import InputError, TrainingError, nearest
from opd_jax.shipped import find_config

# A flag of a command, as text. Several have one of the same name: who imports them together gets one, and no error.
text = functools.partial(flags.DEFINE_string, allow_override=True)

_WORKDIR = text("workdir", "", "Folder of the run: config, metrics, checkpoints, report.")


def run(main: Callable[[configs.Config], None]) -> None:
  """Parses the command line, calls `main(config)` and exits: 0 done, 1 training went wrong, 2 bad input, 130
  interrupted."""

  def with_config(arguments: Sequence[str]) -> None:
    spec, overrides, rest = split(arguments)
    _parse(rest)
    main(load_config(spec, overrides))

  _exit(with_config)


def run_without_config(main: Callable[[Sequence[str]], None]) -> None:
  """The same for a command without a config; `main` gets the positional arguments."""
  _exit(lambda arguments: main(_parse(arguments, positional=True)))


def workdir() -> str:
  """The value of --workdir, the one flag that several commands have."""
  return folder(_WORKDIR, "runs/my_run")


def folder(flag: flags.FlagHolder, example: str) -> str:
  """The value of a flag that names a folder to write to, there or not; InputError where it cannot be one."""
  path = required(flag, example)
  if "://" in path:
    raise InputError(f"--{flag.name}={path} is a URL; give a local folder (mount a bucket with gcsfuse)")
  if os.path.exists(path) and not os.path.isdir(path):
    raise InputError(f"--{flag.name}={path} is a file: give a folder")
  return path


def required(flag: flags.FlagHolder, example: str) -> str:
  """The value of a flag that must be given; InputError with an example where it is not."""
  if not flag.value:
    raise InputError(f"--{flag.name} is missing: give --{flag.name}={example}")
  return flag.value


def split(arguments: Sequence[str]) -> tuple[str, list[str], list[str]]:
  """Command-line arguments as (config spec, `--config.x=...` overrides, the rest)."""
  spec, overrides, rest = "", [], []
  queue = list(arguments)
  while queue:
    argument = queue.pop(0)
    name, equals, value = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or not (name == "config" or name.startswith(("config.", "noconfig."))):
      rest.append(argument)
      continue
    if not equals and queue and not queue[0].startswith("--"):
      value, equals = queue.pop(0), "="
    if name == "config":
      spec = value
    else:
      overrides.append(f"--{name}{equals}{value}")
  return spec, overrides, rest


def load_config(spec: str, overrides: Sequence[str] = ()) -> configs.Config:
  """The checked Config of `FILE[:arg]` with `--config.x.y=value` overrides applied.

  Raises InputError for a file that is missing or raises, an unknown field, a wrong type, or an impossible value.
  """
  if not spec:
    raise InputError("--config is missing: give --config=FILE.py, for instance --config=configs/quickstart.py")
  try:
    values = _merged(_execute(spec))
  except InputError as error:
    raise InputError(f"config file {spec}: {error}") from error
  except config_dict.RequiredValueError as error:
    raise InputError(f"config file {spec}: a field that it says is required has no value") from error
  buckets = values.horizon.buckets
  with values.unlocked(), values.ignore_type():  # one flag type for a name and for rungs: text
    values.horizon.buckets = buckets if isinstance(buckets, str) else ",".join(str(rung) for rung in buckets)
  for override in overrides:
    _known(override, values)
  parsed, arguments = flags.FlagValues(), ["opd_jax", *overrides]
  try:
    holder = config_flags.DEFINE_config_dict("config", values, flag_values=parsed, sys_argv=arguments)
    parsed(arguments)
  except Exception as error:  # absl's, and what Python's parser says of a text that is no value
    raise InputError(f"{error}" or type(error).__name__) from error
  return configs.from_config_dict(holder.value)


def _merged(values: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """All fields: the defaults with a config file's values over them (checked, so that no field is dropped)."""
  return ml_collections.ConfigDict(dataclasses.asdict(configs.from_config_dict(values, check=False)))


def _execute(spec: str) -> ml_collections.ConfigDict:
  path, _, argument = spec.partition(":")
  path = find_config(path)
  if not os.path.isfile(path):
    raise InputError("it does not exist: give --config=FILE.py[:argument]")
  module_spec = importlib.util.spec_from_file_location("opd_jax_config_file", path)
  loader = module_spec and module_spec.loader
  if not isinstance(loader, importlib.machinery.SourceFileLoader):
    raise InputError("it is not a Python file: its name must end in .py")
  module = importlib.util.module_from_spec(module_spec)
  try:
    # Without bytecode: beside a file that is not ours nothing is left, and two versions of one second are two.
    exec(loader.source_to_code(loader.get_data(path), path), vars(module))
    get_config = getattr(module, "get_config", None)
    if get_config is None:
      raise InputError("it has no get_config(): it must define get_config(arg='')")
    if argument and not inspect.signature(get_config).parameters:
      raise InputError(f"its get_config takes no argument, but {argument!r} was given after the colon")
    values = get_config(argument) if argument else get_config()
  except (InputError, KeyboardInterrupt):
    raise
  except BaseException as error:  # a config file is somebody's program: whatever it raises is bad input
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (lines or [None])[-1]
    raise InputError(f"{f'line {line}: ' if line else ''}{type(error).__name__}: {error}") from error
  if not isinstance(values, ml_collections.ConfigDict):
    raise InputError(f"get_config() gave {type(values).__name__}, not an ml_collections.ConfigDict")
  return values


def _known(override: str, values: ml_collections.ConfigDict) -> None:
  """Raises InputError where `--config.a.b=...` names no field."""
  name = override.removeprefix("--").removeprefix("no").removeprefix("config.").partition("=")[0]
  section, where = values, ""
  for part in name.split("."):
    if not isinstance(section, ml_collections.ConfigDict):
      raise InputError(f"unknown config field `{name}`: `{where.rstrip('.')}` is a value, not a section")
    if part not in section:
      raise InputError(
        f"unknown config field `{where}{part}`{nearest(part, section)}; known: {', '.join(sorted(section))}"
      )
    section, where = section[part], f"{where}{part}."
  if isinstance(section, ml_collections.ConfigDict):
    raise InputError(f"config.{name} is a section: set one of its fields, such as config.{name}.{sorted(section)[0]}")


def _parse(arguments: Sequence[str], positional: bool = False) -> Sequence[str]:
  """absl's flags; returns what is left."""
  if any(argument.lstrip("-").partition("=")[0] == "flagfile" for argument in arguments):
    raise InputError("--flagfile is not read here: write options into a config file (--config=FILE.py)")
  if any(argument.lstrip("-").partition("=")[0] in ("help", "helpfull", "h") for argument in arguments):
    print(sys.modules["__main__"].__doc__.strip())
    print(flags.FLAGS.main_module_help())
    sys.exit(0)
  with contextlib.redirect_stdout(io.StringIO()):
    try:
      rest = flags.FLAGS([sys.argv[0], *arguments])[1:]
    except flags.Error as error:
      raise InputError(str(error)) from error
  if rest and not positional:
    raise InputError(f"unexpected argument {rest[0]!r}: options look like --name=value")
  return rest


def _exit(body: Callable[[Sequence[str]], None]) -> None:
  try:
    _check_text(sys.argv[1:])
    body(sys.argv[1:])
    sys.stdout.flush()
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except TrainingError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  except OSError as error:
    if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
      raise
    # What is printed reaches nobody, `| head` or a full disk. Python would try once more at its end, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"error: cannot write to standard output: {error.strerror}; send it to a file with room", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("interrupted: what came after the last checkpoint is lost; the same command goes on from it", file=sys.stderr)
    sys.exit(130)


def _check_text(arguments: Sequence[str]) -> None:
  """Raises InputError for bytes that are no UTF-8, which Python carries in halves of characters."""
  for argument in arguments:
    try:
      argument.encode()
    except UnicodeEncodeError:
      raise InputError(f"the argument {argument} is not UTF-8 text: spell it anew") from None
