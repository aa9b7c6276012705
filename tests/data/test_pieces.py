"""The text of each token: nothing of an answer is lost, and no character is torn."""

from opd_jax.data import load_tokenizer


def test_pieces_put_together_are_the_text(tiny_pair):
  tokenizer = load_tokenizer(tiny_pair / "student")
  text = "Ada has 3 Äpfel — and 🍎 more.\n  How many?"
  ids = tokenizer.hf(text)["input_ids"]
  pieces = tokenizer.pieces(ids)
  assert len(pieces) == len(ids) and "".join(pieces) == text
  assert pieces[pieces.index("🍎") - 3 : pieces.index("🍎")] == [""] * 3  # four tokens, of which the last has the text
  assert tokenizer.pieces([*ids, tokenizer.hf.eos_token_id]) == [*pieces, "<|endoftext|>"]
