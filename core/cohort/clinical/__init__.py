"""A hospital's clinical table: from CSV or Excel to a record a patient of the manifest."""
