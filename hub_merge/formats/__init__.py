"""Bytes on disk to values and back; one file a format. Nothing here knows the Hub."""
