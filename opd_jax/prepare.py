"""A data set made once as a folder of tensorflow-datasets: rows keep their order and fields their names.

python -m opd_jax.prepare gsm8k --out=data                       a name of tensorflow-datasets: data/gsm8k/1.0.0
python -m opd_jax.prepare FOLDER --prompt_field=question --answer_field=answer --out=data
python -m opd_jax.prepare FILE.parquet --prompt_field=prompt --answer_field=reward_model.ground_truth --out=data
"""

from collections.abc import Sequence

from opd_jax import command_line
from opd_jax.data import prepare, split_sizes
from opd_jax.errors import InputError

_OUT = command_line.text("out", "", "Folder that prepared sets stand in.")
_PROMPT = command_line.text("prompt_field", "", "Dotted path of the prompt: text, or a list of chat messages.")
_ANSWER = command_line.text("answer_field", "", "Dotted path of the answer, where there is one.")
_TEACHER = command_line.text("teacher_prompt_field", "", "Dotted path of a prompt that the teacher sees instead.")


def main(arguments: Sequence[str]) -> None:
  if len(arguments) != 1:
    raise InputError("give one data set: python -m opd_jax.prepare PATH_OR_NAME --out=data")
  folder = prepare(
    arguments[0],
    prompt_field=_PROMPT.value,
    answer_field=_ANSWER.value,
    teacher_prompt_field=_TEACHER.value,
    out=command_line.folder(_OUT, "data"),
  )
  sizes = ", ".join(f"{split} {size:,} rows" for split, size in split_sizes(folder).items())
  print(f"{sizes}; read it with --config.data.path={folder}")


if __name__ == "__main__":
  command_line.run_without_config(main)
