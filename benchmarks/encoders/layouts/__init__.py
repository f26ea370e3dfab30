"""The checkpoint layouts that people have, how one is recognised by its keys, and what its keys cannot show."""
