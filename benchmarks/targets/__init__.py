"""Workers that users would run instead, each a script of its own."""
