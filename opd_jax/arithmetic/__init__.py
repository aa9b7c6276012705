"""STUB by the lead, to be replaced by the arithmetic helper. The training room (training/run.py) calls exactly these
three names, in this order; the split exists because bad input must end within 20 s, before anything is trained:

  is_embedded(path) -> bool         does it start with "arithmetic:"? (raises nothing)
  outline(path) -> str              any other path untouched; for an embedded one: the real path, after writing what costs
                                    no training (config.json, generation_config.json, tokenizer files, train.jsonl,
                                    eval.jsonl) into the cache folder; unknown names: InputError with the nearest
  make(path) -> str                 the same real path, after making the weights (safetensors) where they are not there yet
"""


def is_embedded(path: str) -> bool:
  return path.startswith("arithmetic:")


def outline(path: str) -> str:
  if is_embedded(path):
    raise NotImplementedError(path)
  return path


def make(path: str) -> str:
  return outline(path)
