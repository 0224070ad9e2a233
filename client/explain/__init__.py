"""Pictures a pathologist can use; they stay at the hospital."""
