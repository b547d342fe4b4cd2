"""The small world: generated text, its tokenizer, a base model and experts trained from it."""
