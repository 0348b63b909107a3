"""Download published scenes."""
