"""The built-in procedural scene."""
