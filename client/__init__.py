"""One hospital: slides → features → local training → update, under its own policy."""
