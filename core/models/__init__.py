"""Bag models behind one protocol and one registry."""
