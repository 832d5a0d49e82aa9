"""Loading an image model from a diffusers folder: recognise, check, load, adapt."""
