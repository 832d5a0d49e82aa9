"""What takes, recordings and jobs share on disk: locks that end with their process, and names in order of creation."""
