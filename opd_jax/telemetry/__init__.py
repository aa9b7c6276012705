"""What a run leaves behind, and how a person watches it.

    device sums  ──►  metrics.py   (sum, count) pairs that merge over micro-batches and devices
    one row/step ──►  rows.py      one JSON object a line: encode, read, cut back to a step
                      events.py    the same numbers for TensorBoard
                      wandb_run.py and for Weights & Biases, where asked for
                      workdir.py   RunLog: row files and events; config.json, command.sh
    on screen    ──►  live.py      three lines on a terminal
                      console.py   or plain lines; closing table
    afterwards   ──►  record.py    a workdir read back, with the totals that every summary needs
                      plots.py     the charts, as inline SVG
                      page.py      report.html, self-contained

Import the modules themselves: only `metrics` needs jax, so that reading a finished run starts at once.
"""
