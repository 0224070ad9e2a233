"""What travels: instructions, updates, the feature contract."""
