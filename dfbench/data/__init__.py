"""What an image, its source, its label and its annotations are, and how files of them are read."""
