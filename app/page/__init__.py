"""The Gradio page: layout, widgets made from the control table, suggested prompts, and its scripts in web/."""
