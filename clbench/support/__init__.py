"""Small pieces that know nothing of continual learning: files, locks, signals, texts, named random streams."""
