"""From a diffusers folder to an image model: recognise, check, load, adapt."""
