"""Hardware and programs that change controls: OSC and MIDI, their mapping and smoothing."""
