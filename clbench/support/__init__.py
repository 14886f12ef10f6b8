"""Small helpers that know nothing of continual learning: files, locks, signals, text, named random streams."""
