"""A model's tokenizer: loaded as transformers has it, run by the worker's library, written so that it stays so."""
