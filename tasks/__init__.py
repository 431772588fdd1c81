"""How an input becomes a prompt, and a completion a parsed output: prompts, tasks, and what an LLM returns."""
