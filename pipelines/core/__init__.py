"""What all engines share: types, errors, controls, the tick log, transfers and conditions; no models or files."""
