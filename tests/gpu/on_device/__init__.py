"""The parts of on-device.sh, one module each; on-device.sh puts this folder's parent and tests/perf on the path."""
