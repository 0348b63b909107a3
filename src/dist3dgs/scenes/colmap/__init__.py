"""Read COLMAP models without COLMAP."""
