"""What every engine shares: types, errors, controls, the tick log, transfers, conditions. No model and no file."""
