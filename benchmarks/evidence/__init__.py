"""What the papers found, looked for again at the scale of two cores; docs/results.md is made of it.

study              what a study is: its runs, its tables, the findings that it is held against
ledger             finished runs as JSON, so that a study that was stopped goes on
estimates          mean and 95 % interval over seeds
figure             one style of picture
control_toy        two mirrored control tasks and their policies
toy_training       their teachers and students                                ─► variance
tiny_pairs         small models that speak a constructed language
wide_language, counting_language                                              such languages, and pairs that speak them
distillation       opd_jax's own programs on such a pair                      ─► topk, failure_modes
embedded_runs      `opd_jax.train` on the embedded tasks, as child processes
embedded_tables    methods side by side                                       ─► horizons, adaptive
report             all tables and verdicts as one page
"""
