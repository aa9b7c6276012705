"""A run as one page to look at, or several runs compared on one.

python -m opd_jax.report DIR                     writes DIR/report.html
python -m opd_jax.report DIR DIR [...] --out=comparison.html
"""

from collections.abc import Sequence

from opd_jax import command_line
from opd_jax.errors import InputError
from opd_jax.telemetry.page import write_comparison, write_report

_OUT = command_line.text("out", "", "Where the page goes. Default: DIR/report.html, or for several comparison.html.")


def main(workdirs: Sequence[str]) -> None:
  if not workdirs:
    raise InputError("no run given: python -m opd_jax.report DIR [DIR ...], where DIR is the --workdir of a run")
  if len(workdirs) == 1 and not _OUT.value:
    print(write_report(workdirs[0]))
  else:
    print(write_comparison(workdirs, _OUT.value or "comparison.html"))


if __name__ == "__main__":
  command_line.run_without_config(main)
