"""How fast and how exact the programs are, on random weights in the real shapes."""
