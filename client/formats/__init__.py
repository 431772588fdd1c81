"""The forms that datasets have on disk, read and written: ``format.py`` says which."""
