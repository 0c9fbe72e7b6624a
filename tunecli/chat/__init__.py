"""Talking to models: what is named is loaded once, prompts are rendered as they were trained, and answers come
piece by piece."""
