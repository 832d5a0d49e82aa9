"""What `zoetrope analyse` measures of an image model on a user's clip."""
