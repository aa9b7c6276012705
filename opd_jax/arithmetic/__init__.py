"""The default task that needs no download: running sums modulo five, with a teacher and two students made on the spot.

task          problems as text: prompt, chain of thought, and the students' two wrong rules
tokenizer     one token a character, as a Hugging Face tokenizer
recipe        every number that decides what the models become, and its hash
pretraining   from a recipe to weights
store         `arithmetic:uniform/teacher` and its like -> files in a cache folder, made on first use
"""

from opd_jax.arithmetic.recipe import Recipe
from opd_jax.arithmetic.store import is_embedded, make, outline

__all__ = ["Recipe", "is_embedded", "make", "outline"]
