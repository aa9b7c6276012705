"""placeholder, replaced when the recipe is known"""

from opd_jax.config import defaults


def get_config(arg=""):
  config = defaults()
  config.student.path = "arithmetic:uniform/student"
  config.teacher.path = "arithmetic:uniform/teacher"
  config.data.path = "arithmetic:uniform/train.jsonl"
  return config
