"""opd_jax: on-policy distillation of language models, JAX and TPU first.

The folders tell the life of one batch:

    config, horizon, divergence, telemetry     what is asked for, and the pure parts
    distributed, data, programs                the mesh, the prompts, the table of compiled programs
    decode_attention, models                   one decoder for student and teacher
    rollout                                    the student writes
    scoring, objectives, evaluation            the teacher reads; the loss; the marks
    training                                   state, step, checkpoint, loop
    prepare, train, evaluate, export, report   `python -m opd_jax.X`
"""
