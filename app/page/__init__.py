"""The Gradio page: layout, widgets generated from the control table, example prompts, and the scripts in web/."""
