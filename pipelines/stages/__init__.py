"""The table of frame stages that a user can choose. Their contract is in pipelines.core.frame_stages."""
