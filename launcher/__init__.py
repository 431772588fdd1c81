"""Brings this host, or a cluster, to the state that a fleet file describes, and keeps it there."""
