"""From the released archives and annotations to verified images where the annotations say."""
