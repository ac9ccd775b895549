"""How weights are stored, and how a device wants them in memory."""
