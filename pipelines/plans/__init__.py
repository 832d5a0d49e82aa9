"""What `zoetrope plans` does: builds, lists, checks and removes the plans of models, apart from any stream."""
