"""A split or frozen site, in one piece again."""
