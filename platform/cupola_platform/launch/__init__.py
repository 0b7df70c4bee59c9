"""How a job starts: a launcher for each kind of place, chosen in `launcher.make_launcher`."""

FINGERPRINTED = False  # starts jobs
