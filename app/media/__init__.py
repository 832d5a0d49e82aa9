"""Media files: decoding video files and image folders to frames, encoding frames and sound to files."""
