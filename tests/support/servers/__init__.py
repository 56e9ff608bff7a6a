"""Real servers on loopback, each with its own folder and its own process group, for tests against real peers."""
