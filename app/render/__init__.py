"""The batch render: a loop over an engine that never drops a frame; jobs, timelines and recorded takes."""
