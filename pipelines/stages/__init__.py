"""Frame stages that a user can choose: the table of them. What a stage is, pipelines.core.frame_stages says."""
