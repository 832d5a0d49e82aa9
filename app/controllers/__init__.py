"""External controllers: OSC and MIDI input, mapping to controls, and smoothing."""
