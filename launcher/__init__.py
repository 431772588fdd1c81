"""Brings this host to the state that a fleet file describes, and keeps it there."""
