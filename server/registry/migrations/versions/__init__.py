"""The versions, oldest first. None is changed once it is released."""
