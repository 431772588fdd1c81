"""What broker, workers and clients say to each other: messages, their bytes, errors, limits and connections.

And what their commands have in common: options, logs, keys, files of their own, signals, children, service managers.
"""
