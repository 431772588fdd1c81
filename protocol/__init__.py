"""What broker, workers and clients say to each other: messages, their bytes, errors, limits and connections."""
