"""The parts of benches/race.py."""
