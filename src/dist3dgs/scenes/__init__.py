"""From photographs to a packed scene: built-in scene, downloads, structure from motion, undistortion, packing."""
