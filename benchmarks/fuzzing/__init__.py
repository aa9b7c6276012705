"""Bad input by the hundred, for `benchmarks.fuzz` and a few seconds of the tests.

case       what an input is: flags, files of its own, and whether it must be refused
mutate     bytes and JSON, changed at random
configs    overrides and config files
prompts    prompt files: JSONL, parquet, folders of tensorflow-datasets, and what is no file
models     tokenizer folders, config.json, safetensors and their index
harness    one input through the command, in this process or in one of its own, and what came of it
"""
