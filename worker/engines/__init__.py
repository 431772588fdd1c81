"""Ready-made LLMs. Each module needs the package of its own extra, and is imported only when it is asked for."""
