"""The engines: contracts, the control table, the step-batched image engine, schedules, guidance, text and loading."""
