"""The manifest of a hospital's slides, its patients and their splits."""
