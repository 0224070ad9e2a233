"""The hospital's agent: joins a federation and runs approved code for it."""
